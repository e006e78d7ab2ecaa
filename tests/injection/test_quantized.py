"""An adapter on weights that torchao keeps packed: D counts their numbers, and one product runs on the sum."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from gpart import GPartConfig, attach, load_adapter
from gpart.callbacks import GPartCallback
from gpart.injection.tensors import dense, is_packed
from gpart.lightning_modules import CausalLM

quantization = pytest.importorskip("torchao.quantization")
CONFIG = GPartConfig(d=30, target_modules=["0", "2"], modules_to_save=["3"])
DATA = torch.randn(5, 64)


def packed(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 64), nn.Linear(64, 3))
    quantization.quantize_(model[:3], quantization.Int8WeightOnlyConfig())
    assert is_packed(model[0].weight)
    assert not is_packed(model[3].weight)
    return model


def unpacked(model: nn.Sequential) -> nn.Sequential:
    """The same numbers as plain weights."""
    plain = nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 64), nn.Linear(64, 3))
    with torch.no_grad():
        for mine, theirs in zip(plain.parameters(), model.parameters(), strict=True):
            mine.copy_(dense(theirs))
    return plain


def step(model: nn.Module, theta: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The output, and theta's gradient."""
    adapter = attach(model, CONFIG)
    if theta is not None:
        with torch.no_grad():
            adapter.theta.copy_(theta)
    output = model(DATA)
    output.square().sum().backward()
    return output.detach(), adapter.theta.grad


@pytest.mark.parametrize("start", [0.0, 1.0])
def test_output_and_gradient_are_those_of_the_unpacked_weights_to_the_bit(start: float) -> None:
    model = packed()
    plain, theta = unpacked(model), start * torch.randn(30)
    wanted = plain(DATA).detach()
    ours, theirs = step(model, theta), step(plain, theta)
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])
    assert torch.equal(ours[0], wanted) is (start == 0)


def test_d_counts_the_logical_numbers_and_the_base_stays_packed() -> None:
    model = packed()
    before = [model[at].weight for at in (0, 2)]
    bits = [weight.dequantize().clone() for weight in before]
    adapter = attach(model, CONFIG)
    assert adapter.size == 2 * 64 * 96
    nn.init.normal_(adapter.theta)
    with adapter.disabled():
        assert torch.equal(model(DATA), unpacked(packed())(DATA))
    assert adapter.delta("0.weight").shape == (96, 64)
    assert is_packed(model[0]._parameters["weight"])
    adapter.detach()
    assert [model[at].weight for at in (0, 2)] == before
    assert all(torch.equal(model[at].weight.dequantize(), bit) for at, bit in zip((0, 2), bits, strict=True))


@pytest.mark.parametrize("name", ["merge", "merge_and_unload"])
def test_merging_is_refused_and_changes_nothing(name: str) -> None:
    model = packed()
    adapter = attach(model, CONFIG)
    nn.init.normal_(adapter.theta)
    wanted = model(DATA)
    kinds = "Int8Tensor|AffineQuantizedTensor"  # the latter is torchao 0.16's
    with pytest.raises(ValueError, match=rf"0\.weight is packed \(({kinds})\)"):
        getattr(adapter, name)()
    assert not adapter.merged
    assert torch.equal(model(DATA), wanted)


def test_an_adapter_folder_knows_its_packed_base(tmp_path: Path) -> None:
    model = packed()
    adapter = attach(model, CONFIG)
    nn.init.normal_(adapter.theta)
    adapter.save(tmp_path / "adapter")
    again = packed()
    again.load_state_dict({"3.weight": model[3].weight, "3.bias": model[3].bias}, strict=False)
    load_adapter(again, tmp_path / "adapter")
    assert torch.equal(again(DATA), model(DATA))
    with pytest.raises(ValueError, match="another base"):
        load_adapter(packed(seed=1), tmp_path / "adapter")


def test_a_copy_works_on_its_own() -> None:
    model = packed()
    adapter = attach(model, CONFIG)
    nn.init.normal_(adapter.theta)
    other = copy.deepcopy(model)
    assert torch.equal(other(DATA), model(DATA))
    with torch.no_grad():
        adapter.theta.zero_()
    assert not torch.equal(other(DATA), model(DATA))


# A language model


def rows() -> list[dict[str, Tensor]]:
    ids = torch.randint(5, 40, (4, 9))
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids} for _ in range(3)]


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_a_quantized_model_trains_saves_and_loads(precision: str, tiny_causal: Any, tmp_path: Path) -> None:
    def run(stage: str, **more: Any) -> tuple[Trainer, CausalLM, GPartCallback, Any]:
        module = CausalLM(str(tiny_causal("llama")), verify=False, quantization="int8", lr=0.1, warmup_ratio=0.0)
        callback = GPartCallback(d=50, target_modules=["q_proj", "v_proj"])
        trainer = Trainer(
            accelerator="cpu", precision=precision, max_epochs=1, callbacks=[callback], logger=False,
            default_root_dir=tmp_path, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        found = getattr(trainer, stage)(module, DataLoader(rows(), batch_size=None), **more)
        return trainer, module, callback, found

    torch.manual_seed(0)
    trainer, module, callback, _ = run("fit")
    network = module._network()
    assert is_packed(network.model.layers[0].self_attn.k_proj.weight)
    assert not is_packed(network.lm_head.weight)
    assert callback.adapter.theta.dtype == torch.float32
    assert callback.adapter.theta.count_nonzero() > 0
    assert trainer.checkpoint_callback is not None
    path = Path(trainer.checkpoint_callback.best_model_path)
    assert path.stat().st_size < 40_000
    _, _, again, (found,) = run("validate", ckpt_path=str(path), verbose=False)
    assert torch.equal(again.adapter.theta, callback.adapter.theta)
    (wanted,) = trainer.validate(module, DataLoader(rows(), batch_size=None), verbose=False)
    assert found.keys() == wanted.keys()


def test_what_torchao_cannot_do_here_is_one_clear_error(tiny_causal: Any) -> None:
    """Four bits want a GPU's kernels, and layers that are wider than their groups of 128."""
    module = CausalLM(str(tiny_causal("llama")), verify=False, quantization="int4")
    with pytest.raises(ValueError, match=r"torchao (cannot keep|has packed no weight of) .* as int4"):
        module.configure_model()


def test_another_quantization_is_refused() -> None:
    with pytest.raises(ValueError, match=r"quantization must be one of \['int8', 'int4'\] or None, got 'int2'"):
        CausalLM("nowhere", verify=False, quantization="int2")


def test_a_gguf_file_is_not_packed_again(tiny_causal: Any, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    path = tiny_causal.gguf(tmp_path / "tiny.gguf")
    module = CausalLM(str(path), verify=False, quantization="int8")
    with pytest.raises(ValueError, match=r"tiny\.gguf has its own quantization and is unpacked; got 'int8' too"):
        module.configure_model()
