"""The baselines: what each trains is trained, stored and resumed; the rest is frozen and recognised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForSequenceClassification

from gpart import GPartConfig, attach
from gpart.callbacks import (
    BitFit,
    FullFineTuning,
    GPartCallback,
    LinearProbe,
    PartialFineTuning,
    PeftCallback,
    load_from_checkpoint,
)
from gpart.errors import GPartError

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


# The other baselines. NAMES are the project's own parameters.

NAMES = ["net.0.weight", "net.0.bias", "net.1.weight", "net.1.bias", *HEAD]


def test_bitfit_trains_the_biases_and_the_head(lit_any: Any, lit_trainer: Any, lit_loader: Any) -> None:
    module = lit_any()
    module.build()
    before = bits(module)
    trainer = lit_trainer(BitFit(["3"]))
    trainer.fit(module, lit_loader())
    assert sorted(changed(module, before)) == sorted(["net.0.bias", "net.1.bias", *HEAD, *BUFFERS])
    assert trainer.callbacks[0].counts() == (16 + 16 + 34, 34)


def test_bitfit_trains_an_attentions_in_projection_bias(lit_class: Any, lit_trainer: Any) -> None:
    network = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2), "head": nn.Linear(8, 2)})
    part = BitFit(["head"]).apply(network)
    trained = [name for name, value in network.named_parameters() if value.requires_grad]
    assert trained == ["attention.in_proj_bias", "attention.out_proj.bias", "head.weight", "head.bias"]
    assert part.manifest()["trained"] == trained


def test_bitfit_trains_the_biases_of_recurrent_layers() -> None:
    network = nn.ModuleDict(
        {
            "lstm": nn.LSTM(4, 4, num_layers=2, bidirectional=True),
            "gru": nn.GRU(4, 4),
            "cell": nn.LSTMCell(4, 4),
            "head": nn.Linear(4, 1),
        }
    )
    BitFit(["head"]).apply(network)
    trained = {name for name, value in network.named_parameters() if value.requires_grad}
    biases = {name for name, _ in network.named_parameters() if "bias" in name}
    assert len(biases) == 2 * 4 + 2 + 2 + 1
    assert trained == biases | {"head.weight"}


def test_bitfit_without_a_bias_is_refused() -> None:
    with pytest.raises(ValueError, match="Sequential has no bias to train"):
        BitFit().apply(nn.Sequential(nn.Linear(2, 2, bias=False)))


def test_full_fine_tuning_trains_all_but_what_the_model_freezes(
    lit_any: Any, lit_trainer: Any, lit_loader: Any, tmp_path: Path
) -> None:
    module = lit_any()
    module.build()
    module.net[1].weight.requires_grad_(False)
    before = bits(module)
    keeper = ModelCheckpoint(tmp_path)
    lit_trainer(FullFineTuning(), keeper, enable_checkpointing=True).fit(module, lit_loader())
    assert sorted(changed(module, before)) == sorted({*NAMES, *BUFFERS} - {"net.1.weight"})
    saved = torch.load(keeper.best_model_path, weights_only=True)["state_dict"]
    assert set(saved) == {*NAMES, *BUFFERS, HINT} - {"net.1.weight"}


def test_partial_fine_tuning_trains_the_layers_weights_and_the_head(
    lit_any: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    module = lit_any()
    module.build()
    before = bits(module)
    trainer = lit_trainer(PartialFineTuning(["0"], ["3"]))
    trainer.fit(module, lit_loader())
    assert sorted(changed(module, before)) == sorted(["net.0.weight", *HEAD, *BUFFERS])
    assert trainer.callbacks[0].counts() == (128 + 34, 34)


def test_partial_fine_tuning_is_the_adapter_with_a_number_for_each_weight(
    lit_class: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    """W and W0 + P·theta with d = D: the same losses, so the same steps (AdamW, without weight decay)."""

    class Plain(lit_class):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW([one for one in self.parameters() if one.requires_grad], 0.05, weight_decay=0)

    trained = []
    for method in (PartialFineTuning(["0"], ["3"]), GPartCallback(d=128, target_modules=["0"], modules_to_save=["3"])):
        torch.manual_seed(0)
        module = Plain()
        start = module.net[0].weight.detach().clone()
        lit_trainer(method, max_epochs=3).fit(module, lit_loader())
        trained.append(module.net[0].weight.detach() - start)
    assert trained[0].abs().max() > 0.1
    assert (trained[0] - trained[1]).abs().max() < 1e-4


def test_partial_fine_tuning_refuses_layers_that_are_not_there(lit_class: Any) -> None:
    with pytest.raises(GPartError, match=r"target_modules=\['query'\]: 'query' matches no module"):
        PartialFineTuning(["query"], ["3"]).apply(lit_class().net)


METHODS = {
    "BitFit": lambda: BitFit(["3"]),
    "FullFineTuning": FullFineTuning,
    "PartialFineTuning": lambda: PartialFineTuning(["0"], ["3"]),
    "LinearProbe": lambda: LinearProbe(["3"]),
    "LORA": lambda: PeftCallback("LORA", ["0"], ["3"], {"r": 2}),
    "VERA": lambda: PeftCallback("VERA", ["0"], ["3"], {"r": 3, "save_projection": False}),
    "FOURIERFT": lambda: PeftCallback("FOURIERFT", ["0"], ["3"], {"n_frequency": 20}),
    "UNILORA": lambda: PeftCallback("UNILORA", ["0"], ["3"], {"r": 2, "theta_d_length": 12}),
}
OWN = {"LORA": 2 * (8 + 16), "VERA": 3 + 16, "FOURIERFT": 20, "UNILORA": 12}
"""Numbers that PEFT's methods train beside the head of 34, for the layer of 8 to 16 features."""

any_method = pytest.mark.parametrize("method", METHODS)
any_peft = pytest.mark.parametrize("method", OWN)


@any_peft
def test_peft_trains_its_own_numbers_and_the_head_and_keeps_only_them(
    method: str, lit_any: Any, lit_fitted: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    module = lit_any()
    module.build()
    before = {name: value.clone() for name, value in module.named_parameters()}
    network = module.net
    callback = METHODS[method]()
    module, _, path = lit_fitted(module, callback)
    assert module.net is network  # adapted in place: the module keeps what it built
    assert callback.counts() == (OWN[method] + 34, 34)
    base = {name.replace(".base_layer", ""): value for name, value in module.named_parameters()}
    assert torch.equal(base["net.0.weight"], before["net.0.weight"])
    assert not torch.equal(base["net.3.weight"], before["net.3.weight"])
    saved = torch.load(path, weights_only=True)
    tensors = {value.data_ptr(): value for value in saved["state_dict"].values() if value.numel()}
    assert sum(value.numel() for value in tensors.values()) == OWN[method] + 34 + 2 * 16 + 1  # and the buffers
    assert method in capsys.readouterr().out


@any_peft
def test_peft_changes_the_output(method: str, lit_class: Any, lit_fitted: Any) -> None:
    """What is trained is what the module runs on: with the adapter off the output is another."""
    callback = METHODS[method]()
    module, _, _ = lit_fitted(None, callback)
    x = torch.randn(4, 8)
    module.eval()
    with torch.no_grad():
        on = module(x)
        with callback.peft_model.disable_adapter():
            off = module(x)
    assert not torch.equal(on, off)


@any_method
def test_a_run_resumes_to_the_same_bits(
    method: str, lit_any: Any, lit_trainer: Any, lit_loader: Any, tmp_path: Path
) -> None:
    def fit(epochs: int, path: Path | None = None) -> tuple[Any, Path]:
        module, keeper = lit_any(), ModelCheckpoint(tmp_path, filename=f"{{epoch}}-{epochs}")
        torch.manual_seed(0)  # where PEFT's numbers start is drawn
        trainer = lit_trainer(METHODS[method](), keeper, max_epochs=epochs, enable_checkpointing=True)
        trainer.fit(module, lit_loader(), ckpt_path=path)
        return module, Path(keeper.best_model_path)

    whole, _ = fit(2)
    _, path = fit(1)
    torch.manual_seed(1)
    resumed, _ = fit(2, path)
    assert changed(resumed, bits(whole)) == []


@any_method
def test_a_checkpoint_is_read_without_a_trainer(method: str, lit_fitted: Any, lit_class: Any) -> None:
    module, _, path = lit_fitted(None, METHODS[method]())
    torch.manual_seed(5)
    loaded = load_from_checkpoint(lit_class, path)
    assert changed(loaded, bits(module)) == []
    x = torch.randn(4, 8)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(x), module.eval()(x))


@any_method
def test_another_methods_checkpoint_is_refused(
    method: str, lit_fitted: Any, lit_class: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    _, _, path = lit_fitted(None, METHODS[method]())
    for name, other in METHODS.items():
        if name == method:
            continue
        module = lit_class()
        before = {key: value.clone() for key, value in module.named_parameters()}
        with pytest.raises(ValueError, match=r"was trained by|this run trains"):
            lit_trainer(other()).test(module, lit_loader(), ckpt_path=path, verbose=False)
        for key, value in module.named_parameters():
            if key in before:
                assert torch.equal(value, before[key]), key


@any_peft
def test_other_settings_or_another_base_are_refused(
    method: str, lit_fitted: Any, lit_class: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    _, _, path = lit_fitted(None, METHODS[method]())
    with pytest.raises(ValueError, match=r"trained on base \w{64}, this model has fingerprint \w{64}"):
        lit_trainer(METHODS[method]()).test(lit_class(base=1), lit_loader(), ckpt_path=path, verbose=False)
    callback = METHODS[method]()
    seeds = {
        "VERA": "projection_prng_key",
        "FOURIERFT": "random_loc_seed",
        "UNILORA": "proj_seed",
        "LORA": "lora_alpha",
    }
    callback.settings[seeds[method]] = 99  # trains the same shapes, and is another adapter
    with pytest.raises(ValueError, match=f"was trained by PeftCallback with .*this run has .*{seeds[method]}"):
        lit_trainer(callback).test(lit_class(), lit_loader(), ckpt_path=path, verbose=False)


def test_a_second_trainer_adopts_an_equal_adapter_and_refuses_another(
    lit_fitted: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    module, _, _ = lit_fitted(None, METHODS["LORA"]())
    before = bits(module)
    second = METHODS["LORA"]()
    lit_trainer(second).test(module, lit_loader(), verbose=False)
    assert changed(module, before) == []
    assert second.peft_model.get_base_model() is module.net
    for other in (METHODS["VERA"](), PeftCallback("LORA", ["0"], ["3"], {"r": 3})):
        with pytest.raises(ValueError, match=r"was adapted with .*'r': 2.*this callback has"):
            lit_trainer(other).test(module, lit_loader(), verbose=False)
    assert changed(module, before) == []


def test_a_network_that_peft_itself_adapted_is_refused(lit_class: Any, lit_trainer: Any, lit_loader: Any) -> None:
    module = lit_class()
    get_peft_model(module.net, LoraConfig(target_modules=["0"]))
    with pytest.raises(ValueError, match=r"carries a PEFT adapter already, at \['0'\]"):
        lit_trainer(METHODS["VERA"]()).fit(module, lit_loader())


@pytest.mark.parametrize("method", ["BitFit", "FullFineTuning", "LORA"])
def test_gpart_and_another_method_do_not_mix(method: str, lit_class: Any, lit_trainer: Any, lit_loader: Any) -> None:
    module = lit_class()
    attach(module.net, GPartConfig(d=10, target_modules=["0"], modules_to_save=["3"]))
    with pytest.raises(ValueError, match=r"carries a.* adapter, \['default'\]: detach\(\)"):
        lit_trainer(METHODS[method]()).fit(module, lit_loader())


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"peft_type": "LORE"}, "'LORE' is none of PEFT's: .*LORA"),
        ({"settings": {"rank": 8}}, "LoraConfig refuses {'rank': 8}: .*rank"),
        ({"target_modules": ["query"]}, "PEFT refuses .*query"),
        ({"settings": {"r": 0}}, "PEFT refuses .*'r': 0"),
        ({"modules_to_save": ["classifier"]}, "'classifier' matches no module"),
    ],
)
def test_what_peft_refuses_is_one_error_and_the_network_is_kept(
    more: dict[str, Any], said: str, lit_class: Any, state_of: Any
) -> None:
    module = lit_class()
    state = state_of(module)
    settings = {"peft_type": "LORA", "target_modules": ["0"], "modules_to_save": ["3"], **more}
    with pytest.raises(ValueError, match=said):
        PeftCallback(**settings).apply(module.net)
    state.assert_kept()


@pytest.mark.filterwarnings("ignore:Lazy modules")
@any_method
def test_a_lazy_head_is_to_be_run_first(method: str, lit_class: Any, state_of: Any) -> None:
    network = lit_class().net
    network[3] = nn.LazyLinear(2)
    state = state_of(network)
    with pytest.raises(GPartError, match=r"3 \(LazyLinear\) has no shape yet: run the lazy layer once"):
        METHODS[method]().apply(network)
    state.assert_kept()


@pytest.mark.parametrize("method", ["BitFit", "LORA"])
def test_a_forgotten_random_head_is_named(method: str, tiny_encoder: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(tiny_encoder)
    callback = BitFit() if method == "BitFit" else PeftCallback("LORA", ["query"])
    with pytest.raises(ValueError, match=r"modules_to_save=None leaves out .*classifier.dense.weight"):
        callback.apply(model)
    assert all(value.requires_grad for value in model.parameters())


@any_method
def test_it_is_the_same_under_validate_test_and_predict(
    method: str, lit_any: Any, lit_fitted: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    module, trainer, path = lit_fitted(lit_any(), METHODS[method]())
    before = bits(module)
    for stage in ("validate", "test"):
        getattr(trainer, stage)(module, lit_loader(), ckpt_path=path, verbose=False)
    trainer.predict(module, lit_loader(), ckpt_path=path)
    assert changed(module, before) == []


@pytest.fixture
def resized(tmp_path: Path) -> Any:
    """A language model with three rows more than it was loaded with, its head tied to them."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    LlamaForCausalLM(LlamaConfig(vocab_size=20, tie_word_embeddings=True, **sizes)).save_pretrained(tmp_path)
    model = LlamaForCausalLM.from_pretrained(tmp_path)
    model.resize_token_embeddings(23)
    return model


@pytest.mark.parametrize("method", [lambda saved: PeftCallback("LORA", ["q_proj"], saved), LinearProbe])
def test_rows_that_were_added_to_an_embedding_are_trained_or_refused(method: Any, resized: Any) -> None:
    with pytest.raises(GPartError, match=r"embed_tokens\.weight \(20 rows when it was loaded, now 23\)"):
        method(["norm"]).apply(resized)
    assert all(value.requires_grad for value in resized.parameters())
    method(["embed_tokens", "lm_head"]).apply(resized)


@pytest.mark.parametrize("tokens", [[20, 21, 22], {"embed_tokens": [20, 21, 22]}])
def test_rows_that_peft_trains_by_themselves_are_its_own_affair(tokens: Any, resized: Any) -> None:
    contents = PeftCallback("LORA", ["q_proj"], settings={"trainable_token_indices": tokens}).apply(resized)
    assert any("token_adapter" in key for key in resized.state_dict() if key not in contents.frozen_keys())
