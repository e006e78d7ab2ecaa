"""Projects that never heard of GPart train with it by one line."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import timm
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import resnet18
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from gpart import GPartConfig, attach, get_adapters
from gpart.callbacks import GPartCallback, LinearProbe
from gpart.injection.names import get_parameter


class Project(LightningModule):
    """A user's project: a network, a loss, an optimizer."""

    def __init__(self, build: Callable[[], nn.Module], loss: Callable[[nn.Module, tuple[Tensor, ...]], Tensor]) -> None:
        super().__init__()
        self.build, self.loss = build, loss
        self.model = build()
        self.counted = nn.Identity()  # a child without parameters changes nothing

    def training_step(self, batch: tuple[Tensor, ...], index: int) -> Tensor:
        return self.loss(self.model, batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.model.parameters(), lr=1e-2)


def cross_entropy(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def hugging_face(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    return model(input_ids=batch[0], labels=batch[1]).loss


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))


def bert() -> nn.Module:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return BertForSequenceClassification(BertConfig(vocab_size=50, **sizes)).train()


def gpt2() -> nn.Module:
    return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=16, eos_token_id=1))


def vit() -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=24, num_heads=2, num_classes=3)


IMAGES, TOKENS = torch.randn(6, 3, 32, 32), torch.randint(2, 50, (6, 8))
PROJECTS = {
    "plain": (plain, cross_entropy, (torch.randn(6, 8), torch.arange(6) % 2), ["0"], ["2"]),
    "torchvision CNN": (
        lambda: resnet18(num_classes=3),
        cross_entropy,
        (IMAGES, torch.arange(6) % 3),
        ["conv1"],
        ["fc"],
    ),
    "Hugging Face": (bert, hugging_face, (TOKENS, torch.arange(6) % 2), ["query", "value"], ["classifier"]),
    "GPT-2": (gpt2, hugging_face, (TOKENS, TOKENS), ["c_attn"], ["ln_f"]),
    "timm ViT": (vit, cross_entropy, (IMAGES, torch.arange(6) % 3), ["qkv"], ["head"]),
}


def quiet(**more: object) -> Trainer:
    settings = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(**{**settings, "enable_model_summary": False, "max_steps": 3, **more})


def loader(data: tuple[Tensor, ...]) -> DataLoader:
    return DataLoader(TensorDataset(*data), batch_size=2)


@pytest.mark.parametrize("kind", PROJECTS)
def test_any_project_trains_by_the_callback_alone(kind: str) -> None:
    build, loss, data, targets, head = PROJECTS[kind]
    module = Project(build, loss)
    before = {name: value.detach().clone() for name, value in module.model.named_parameters()}
    callback = GPartCallback(d=20, target_modules=targets, modules_to_save=head)
    quiet(callbacks=[callback]).fit(module, loader(data))
    adapter = callback.adapter
    assert adapter.model is module.model
    assert adapter.theta.count_nonzero() > 0
    assert set(adapter.plan.saved) | set(adapter.plan.frozen) == set(before)
    for name in adapter.plan.frozen:
        assert torch.equal(get_parameter(module.model, name), before[name]), name
    for name in adapter.plan.saved:
        assert not torch.equal(get_parameter(module.model, name), before[name]), name


class Late(LightningModule):
    """A network built where the test says, counted."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where, self.built, self.net = where, 0, None
        self.make("init")

    def make(self, place: str) -> None:
        if place == self.where and self.net is None:
            self.built += 1
            self.net = plain()

    def setup(self, stage: str) -> None:
        self.make("setup")

    def configure_model(self) -> None:
        self.make("configure_model")

    def training_step(self, batch: tuple[Tensor, ...], index: int) -> Tensor:
        return cross_entropy(self.net, batch)

    def validation_step(self, batch: tuple[Tensor, ...], index: int) -> None:
        self.log("val/loss", cross_entropy(self.net, batch))

    test_step = validation_step

    def predict_step(self, batch: tuple[Tensor, ...], index: int) -> Tensor:
        return self.net(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


DATA = PROJECTS["plain"][2]


def one(**more: object) -> GPartCallback:
    return GPartCallback(**{"d": 10, "target_modules": ["0"], "modules_to_save": ["2"], **more})


@pytest.mark.parametrize("where", ["init", "setup", "configure_model"])
def test_networks_are_built_once_wherever_and_adapted_once(where: str) -> None:
    module, callback = Late(where), one()
    trainer = quiet(callbacks=[callback])
    trainer.fit(module, loader(DATA), loader(DATA))
    adapter = callback.adapter
    assert "configure_model" not in vars(module)
    trainer.validate(module, loader(DATA), verbose=False)
    trainer.test(module, loader(DATA), verbose=False)
    trainer.predict(module, loader(DATA))
    other = one()
    quiet(callbacks=[other]).fit(module, loader(DATA), loader(DATA))
    assert module.built == 1
    assert other.adapter is adapter
    assert get_adapters(module.net) == {"default": adapter}


@pytest.mark.parametrize(
    "strategy",
    [
        DDPStrategy(start_method="spawn"),
        FSDPStrategy(use_orig_params=False),
        ModelParallelStrategy(),
        DeepSpeedStrategy.__new__(DeepSpeedStrategy),  # its constructor asks for the library
    ],
    ids=lambda s: type(s).__name__,
)
def test_strategies_that_would_lose_theta_are_refused(strategy: Strategy) -> None:
    # Not a Trainer: with FSDP its constructor asks for a GPU.
    module = Late("init")
    with pytest.raises(ValueError, match=r"is not supported.*ddp|tensor_parallel_size=auto|use_orig_params=False"):
        one().setup(SimpleNamespace(strategy=strategy, callbacks=[]), module, "fit")
    assert not get_adapters(module.net)


def test_the_wrap_is_undone_after_an_exception() -> None:
    class Fails(Late):
        def training_step(self, batch: tuple[Tensor, ...], index: int) -> Tensor:
            raise RuntimeError("on purpose")

    module = Fails("configure_model")
    with pytest.raises(RuntimeError, match="on purpose"):
        quiet(callbacks=[one()]).fit(module, loader(DATA))
    assert "configure_model" not in vars(module)


def test_what_is_outside_the_adapted_module_is_left_as_it_was() -> None:
    class TwoParts(Late):
        def __init__(self) -> None:
            super().__init__("init")
            self.extra = nn.Linear(2, 2)
            self.fixed = nn.Linear(2, 2).requires_grad_(False)

        def training_step(self, batch: tuple[Tensor, ...], index: int) -> Tensor:
            return nn.functional.cross_entropy(self.fixed(self.extra(self.net(batch[0]))), batch[1])

    module = TwoParts()
    extra = module.extra.weight.detach().clone()
    quiet(callbacks=[one(module="net")]).fit(module, loader(DATA))
    assert not torch.equal(module.extra.weight, extra)
    assert not module.fixed.weight.requires_grad
    assert not get_parameter(module.net, "0.weight").requires_grad


def test_an_equal_adapter_is_adopted_and_another_refused() -> None:
    module = Late("init")
    adapter = attach(module.net, GPartConfig(d=10, target_modules=["0"], modules_to_save=["2"]))
    callback = one()
    quiet(callbacks=[callback]).fit(module, loader(DATA))
    assert callback.adapter is adapter
    with pytest.raises(ValueError, match="d is 10 and 11"):
        quiet(callbacks=[one(d=11)]).fit(module, loader(DATA))


def test_theta_must_be_in_an_optimizer() -> None:
    class Forgets(Late):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.net[2].parameters(), lr=0.1)

    with pytest.raises(ValueError, match="is in no optimizer"):
        quiet(callbacks=[one()]).fit(Forgets("init"), loader(DATA))


def test_theta_must_get_a_gradient() -> None:
    class Bypasses(Late):
        def training_step(self, batch: tuple[Tensor, ...], index: int) -> Tensor:
            return self.net[2](torch.ones(1, 16)).sum()

    with pytest.raises(ValueError, match="theta has no gradient"):
        quiet(callbacks=[one()]).fit(Bypasses("init"), loader(DATA))


def test_layers_built_too_late_are_named() -> None:
    class Adds(Late):
        def setup(self, stage: str) -> None:
            self.net.add_module("late", nn.Linear(2, 2))

    with pytest.raises(ValueError, match=r"late\.weight.*built after"):
        quiet(callbacks=[one()]).fit(Adds("init"), loader(DATA))


def test_wrong_submodule_and_wrong_pattern_are_named() -> None:
    with pytest.raises(ValueError, match=r"module='nothing' is no submodule.*'net'"):
        quiet(callbacks=[one(module="nothing")]).fit(Late("init"), loader(DATA))
    module = Late("configure_model")
    with pytest.raises(ValueError, match="'query' matches no module"):
        quiet(callbacks=[one(target_modules=["query"])]).fit(module, loader(DATA))
    assert not [name for name, value in module.named_parameters() if not value.requires_grad]


def test_eval_mode_at_the_start_of_fit_warns() -> None:
    module = Late("init").eval()
    with pytest.warns(UserWarning, match="eval mode"):
        quiet(callbacks=[one()]).fit(module, loader(DATA))


def test_it_logs_the_length_of_the_update_and_its_rate(tmp_path) -> None:
    callback = one()
    trainer = quiet(callbacks=[callback], logger=CSVLogger(tmp_path), log_every_n_steps=1)
    trainer.fit(Late("init"), loader(DATA))
    adapter = callback.adapter
    delta = adapter.delta("0.weight")
    assert trainer.callback_metrics["gpart/theta_norm"].item() == pytest.approx(delta.norm().item(), rel=1e-5)
    assert trainer.callback_metrics["gpart/lr"].item() == pytest.approx(0.1)


def test_the_table_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    quiet(callbacks=[one()]).fit(Late("init"), loader(DATA))
    cells = [[c.strip() for c in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines() if "│" in line]
    table = dict(cells)
    assert table["D, their size"] == "128"
    assert table["d, length of theta"] == "10"
    assert table["trainable parameters"] == str(10 + 16 * 2 + 2)
    assert table["frozen parameters"] == str(128 + 16)
    assert table["checkpoint, weights"] == f"{4 * 44} B"


def test_an_averaged_model_holds_theta_wherever_the_callback_stands() -> None:
    average = WeightAveraging(avg_fn=lambda old, new, count: new)
    callback = one()
    trainer = quiet(callbacks=[average, callback])
    trainer.fit(Late("init"), loader(DATA))
    assert trainer.callbacks[0] is callback
    assert callback.adapter.theta.count_nonzero() > 0


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed", "16-mixed", "16-true", "64-true"])
def test_theta_is_never_below_float32(precision: str) -> None:
    seen: list[torch.dtype] = []

    class Looks(Late):
        def on_train_start(self) -> None:
            seen.extend([callback.adapter.theta.dtype, get_parameter(self.net, "0.weight").dtype])

    callback = one()
    module = Looks("configure_model" if precision == "bf16-true" else "init")
    quiet(callbacks=[callback], precision=precision).fit(module, loader(DATA))
    true = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}
    assert seen == [torch.float64 if precision == "64-true" else torch.float32, true.get(precision, torch.float32)]
    assert callback.adapter.theta.count_nonzero() > 0


def test_a_lost_update_is_announced() -> None:
    class Slow(Late):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=1e-7)

    with pytest.warns(UserWarning, match="lost in rounding"):
        quiet(callbacks=[one()], precision="bf16-true").fit(Slow("init"), loader(DATA))


def test_each_weight_is_computed_once_a_step(evaluations: list[tuple[int, ...]]) -> None:
    build, loss, data, _, _ = PROJECTS["GPT-2"]
    callback = GPartCallback(d=20, target_modules=["wte", "c_attn"])  # wte is tied to lm_head
    quiet(callbacks=[callback]).fit(Project(build, loss), loader(data))
    assert len(callback.adapter.plan.weights) == 3
    assert len(evaluations) == 3 * 3


def test_start_from_a_folder_and_leave_one(tmp_path) -> None:
    first = one(save_folder=str(tmp_path / "a"))
    module = Late("init")
    start = {name: value.clone() for name, value in module.state_dict().items()}
    quiet(callbacks=[first]).fit(module, loader(DATA))
    again = Late("init")
    again.load_state_dict(start)
    second = GPartCallback(adapter=str(tmp_path / "a"))
    quiet(callbacks=[second]).test(again, loader(DATA), verbose=False)
    assert torch.equal(second.adapter.theta, first.adapter.theta)
    third = Late("init")
    third.load_state_dict(start)
    with pytest.raises(ValueError, match="d is 10 and 12"):
        quiet(callbacks=[one(d=12, adapter=str(tmp_path / "a"))]).test(third, loader(DATA), verbose=False)
    assert list(third.state_dict()) == list(start)


def test_the_linear_probe_trains_the_head_only() -> None:
    module = Late("init")
    before = {name: value.clone() for name, value in module.state_dict().items()}
    quiet(callbacks=[LinearProbe(["2"])]).fit(module, loader(DATA))
    changed = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"net.2.weight", "net.2.bias"}
