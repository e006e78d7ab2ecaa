"""The linear probe: the head is trained, stored and resumed; the rest is frozen and recognised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from gpart import GPartConfig, attach
from gpart.callbacks import LinearProbe, load_from_checkpoint

HEAD = ["net.3.weight", "net.3.bias"]
BUFFERS = ["net.1.running_mean", "net.1.running_var", "net.1.num_batches_tracked"]
HINT = "This checkpoint holds an adapter: read it with gpart.callbacks.load_from_checkpoint(cls, path)"


def bits(module: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def changed(module: nn.Module, before: dict[str, torch.Tensor]) -> list[str]:
    now = module.state_dict()
    assert list(now) == list(before)
    return [key for key in now if not torch.equal(now[key], before[key])]


def test_it_trains_the_head_and_nothing_else(
    lit_any: Any, lit_trainer: Any, lit_loader: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    module = lit_any()
    module.build()
    before = bits(module)
    trainer = lit_trainer(LinearProbe(["3"]))
    trainer.fit(module, lit_loader(), lit_loader())
    for stage in ("validate", "test"):
        getattr(trainer, stage)(module, lit_loader(), verbose=False)
    assert sorted(changed(module, before)) == sorted([*HEAD, *BUFFERS])
    assert [name for name, value in module.named_parameters() if value.requires_grad] == HEAD
    assert set(trainer.optimizers[0].state) == {module.net[3].weight, module.net[3].bias}
    assert "configure_model" not in vars(module)
    printed = capsys.readouterr().out
    assert printed.count("LinearProbe") == 1
    rows = dict([cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines() if "│" in line)
    assert rows["trainable parameters"] == "34"
    assert rows["frozen parameters"] == str(8 * 16 + 16 + 2 * 16)


def test_its_checkpoint_holds_the_head_and_the_buffers(lit_any: Any, lit_fitted: Any) -> None:
    _, _, path = lit_fitted(lit_any(), LinearProbe(["3"]))
    checkpoint = torch.load(path, weights_only=True)
    assert sorted(checkpoint["state_dict"]) == sorted([*HEAD, *BUFFERS, HINT])
    assert sorted(state["exp_avg"].numel() for state in checkpoint["optimizer_states"][0]["state"].values()) == [2, 32]
    assert checkpoint["gpart"]["manifest"]["method"] == "LinearProbe"


def test_it_resumes_to_the_same_bits(lit_any: Any, lit_trainer: Any, lit_loader: Any, tmp_path: Path) -> None:
    def fit(epochs: int, path: Path | None = None) -> tuple[Any, ModelCheckpoint]:
        module, keeper = lit_any(), ModelCheckpoint(tmp_path)
        trainer = lit_trainer(LinearProbe(["3"]), keeper, max_epochs=epochs, enable_checkpointing=True)
        trainer.fit(module, lit_loader(), ckpt_path=path)
        return module, keeper

    whole, _ = fit(2)
    _, keeper = fit(1)
    resumed, _ = fit(2, Path(keeper.best_model_path))
    assert changed(resumed, bits(whole)) == []


def test_another_base_or_head_is_refused_and_the_model_kept(
    lit_fitted: Any, lit_class: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    _, _, path = lit_fitted(method=LinearProbe(["3"]))
    for module, probe, said in (
        (lit_class(base=1), LinearProbe(["3"]), r"trained on base \w{64}, this model has fingerprint \w{64}"),
        (lit_class(width=17), LinearProbe(["3"]), "trained on base"),
        (lit_class(), LinearProbe(["3", "1"]), r"holds \['3\.weight', '3\.bias'\], this run trains \['1\.weight'"),
    ):
        before = bits(module)
        with pytest.raises(ValueError, match=rf"{path.name}.*{said}"):
            lit_trainer(probe, max_epochs=2).fit(module, lit_loader(), ckpt_path=path)
        assert changed(module, before) == []


def test_a_tensor_missing_or_too_many_is_refused(
    lit_fitted: Any, lit_class: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    _, _, path = lit_fitted(method=LinearProbe(["3"]))
    good = torch.load(path, weights_only=True)
    state = good["state_dict"]
    for other, said in (
        ({key: value for key, value in state.items() if key != HEAD[1]}, r"keys missing \['3\.bias'\]"),
        ({**state, "net.0.weight": torch.zeros(16, 8)}, r"keys too many \['0\.weight'\]"),
        ({**state, HEAD[1]: torch.zeros(3)}, r"3\.bias has shape \[3\], here \[2\]"),
    ):
        torch.save({**good, "state_dict": other}, path)
        module = lit_class()
        before = bits(module)
        with pytest.raises(ValueError, match=said):
            lit_trainer(LinearProbe(["3"])).test(module, lit_loader(), ckpt_path=path, verbose=False)
        assert changed(module, before) == []


def test_tied_weights_follow_the_head(lit_trainer: Any, lit_loader: Any, lit_class: Any) -> None:
    """A weight that the head shares with a frozen layer is the head's."""

    class Tied(lit_class):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Tanh(), nn.Linear(8, 8, bias=False))
            self.net[2].weight = self.net[0].weight

    module = Tied()
    lit_trainer(LinearProbe(["2"])).fit(module, lit_loader())
    assert module.net[0].weight.requires_grad


def test_what_matches_nothing_is_named(lit_any: Any, lit_trainer: Any, lit_loader: Any) -> None:
    module = lit_any()
    with pytest.raises(ValueError, match="'classifier' matches no module"):
        lit_trainer(LinearProbe(["classifier"])).fit(module, lit_loader())
    assert all(value.requires_grad for value in module.parameters())
    with pytest.raises(ValueError, match="module='body' is no submodule"):
        lit_trainer(LinearProbe(["3"], module="body")).fit(lit_any(), lit_loader())


def test_outside_the_module_nothing_is_frozen(lit_class: Any, lit_trainer: Any, lit_loader: Any) -> None:
    class More(lit_class):
        def __init__(self) -> None:
            super().__init__()
            self.extra = nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.extra(self.net(x))

    module = More()
    before = bits(module)
    lit_trainer(LinearProbe(["3"], module="net")).fit(module, lit_loader())
    assert {"extra.weight", "extra.bias"} < set(changed(module, before))


def test_its_checkpoint_can_be_read_without_a_trainer(lit_fitted: Any, lit_class: Any) -> None:
    module, _, path = lit_fitted(method=LinearProbe(["3"]))
    loaded = load_from_checkpoint(lit_class, path)
    assert changed(loaded, bits(module)) == []


def test_a_network_with_an_adapter_is_refused(lit_class: Any, lit_trainer: Any, lit_loader: Any) -> None:
    module = lit_class()
    attach(module.net, GPartConfig(d=10, target_modules=["0"], modules_to_save=["3"]))
    with pytest.raises(ValueError, match="adapter"):
        lit_trainer(LinearProbe(["3"])).fit(module, lit_loader())
