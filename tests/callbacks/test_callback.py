"""The callback's moments: it adapts once, wherever the network is built, says what is wrong, and leaves no trace."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from gpart import GPartConfig, GPartError, attach, get_adapters, load_adapter
from gpart.callbacks import GPartCallback, PeftCallback
from gpart.callbacks.baselines import LinearProbe
from gpart.injection.names import get_parameter

CONFIG = GPartConfig(d=10, target_modules=["0"], modules_to_save=["3"])
THETA = "0.gpart.default.theta"


def run(trainer: Trainer, stage: str, module: LightningModule, data: Any) -> Any:
    silent = {"verbose": False} if stage in ("validate", "test") else {}
    return getattr(trainer, stage)(module, data, **silent)


# Where and when


def test_built_once_and_adapted_once_over_every_stage(
    lit_any: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    module, callback = lit_any(), lit_gpart()
    trainer = lit_trainer(callback)
    trainer.fit(module, lit_loader(), lit_loader())
    adapter, keys, trained = callback.adapter, list(module.state_dict()), callback.adapter.theta.clone()
    assert trained.count_nonzero() > 0
    for stage in ("validate", "test", "predict", "predict"):
        same = run(trainer, stage, module, lit_loader())
        assert callback.adapter is adapter
        other = lit_gpart()
        new = run(lit_trainer(other), stage, module, lit_loader())
        assert other.adapter is adapter
        assert str(new) == str(same)
    assert module.built == 1
    assert list(module.state_dict()) == keys
    assert get_adapters(module.net) == {"default": adapter}
    assert torch.equal(adapter.theta, trained)
    lit_trainer(lit_gpart()).fit(module, lit_loader())
    assert module.built == 1
    assert not torch.equal(adapter.theta, trained)


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_it_adapts_before_any_stage_and_the_network_computes_the_same(
    stage: str, lit_any: Any, lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    module, callback = lit_any(), lit_gpart()
    found = run(lit_trainer(callback), stage, module, lit_loader())
    assert get_adapters(module.net) == {"default": callback.adapter}
    assert str(found) == str(run(lit_trainer(), stage, lit_class(), lit_loader()))


def test_theta_is_there_once_when_the_optimizer_is_made(
    lit_any: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    seen: list[str] = []

    class Looks(lit_any):
        def configure_optimizers(self) -> Any:
            theta = self.net.gpart.default.theta
            for owner in (self, self.net):
                seen.extend(name for name, value in owner.named_parameters() if value is theta)
                assert next(owner.parameters()) is not theta  # Transformers takes a model's dtype from the first
            return super().configure_optimizers()

    lit_trainer(lit_gpart()).fit(Looks(), lit_loader())
    assert seen == ["net." + THETA, THETA]


def test_the_module_keeps_its_own_configure_model(
    lit_any: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    wrapped: list[bool] = []

    class Looks(lit_any):
        def setup(self, stage: str) -> None:
            super().setup(stage)
            wrapped.append("configure_model" in vars(self))

        def on_fit_start(self) -> None:
            wrapped.append("configure_model" in vars(self))

    module = Looks()
    lit_trainer(lit_gpart()).fit(module, lit_loader())
    assert "configure_model" not in vars(module)
    assert wrapped == [True, False]  # its setup may build the network anew


def test_one_set_on_the_instance_is_called_once_and_put_back(
    lit_built_in: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    module = lit_built_in["setup"]()
    module.setup = lambda stage: None
    calls: list[int] = []

    def own() -> None:
        calls.append(1)
        module.build()

    module.configure_model = own
    callback = lit_gpart()
    lit_trainer(callback).fit(module, lit_loader())
    assert vars(module)["configure_model"] is own
    assert calls == [1]
    assert callback.adapter.theta.count_nonzero() > 0


@pytest.mark.parametrize("where", ["configure_model", "configure_optimizers", "training_step"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_wrap_is_undone_after_an_exception(
    where: str, error: type, lit_built_in: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    fail = True

    class Fails(lit_built_in["configure_model"]):
        pass

    def failing(self: Any, *given: Any) -> Any:
        if fail:
            raise error("on purpose")
        return getattr(lit_built_in["configure_model"], where)(self, *given)

    setattr(Fails, where, failing)
    module, callback = Fails(), lit_gpart()
    trainer = lit_trainer(callback)
    with pytest.raises((RuntimeError, SystemExit)):
        trainer.fit(module, lit_loader())
    assert "configure_model" not in vars(module)
    fail = False
    lit_trainer(callback).fit(module, lit_loader())
    assert module.built == 1
    assert callback.adapter.theta.count_nonzero() > 0


class Partial(LightningModule):
    """The backbone is there from the start, the head is made in setup."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(8, 6), nn.Tanh())

    def setup(self, stage: str) -> None:
        if not hasattr(self, "head"):
            self.head = nn.Linear(6, 2)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return nn.functional.cross_entropy(self.head(self.backbone(batch[0])), batch[1])

    test_step = training_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.5)


@pytest.mark.parametrize("where", ["setup", "configure_model"])
@pytest.mark.parametrize("method", ["GPart", "LinearProbe", "LoRA"])
def test_a_network_that_every_stage_builds_anew(
    where: str, method: str, tmp_path: Path, lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    """As Lightning's own documentation has it: setup makes the layers, whatever is there already."""

    class Anew(lit_class):
        def setup(self, stage: str) -> None:
            if where == "setup":
                self.net = lit_class().net

        def configure_model(self) -> None:
            if where == "configure_model":
                self.net = lit_class().net

    made: Any = {
        "GPart": lit_gpart,
        "LinearProbe": lambda: LinearProbe(modules_to_save=["3"]),
        "LoRA": lambda: PeftCallback("LORA", target_modules=["0"], modules_to_save=["3"]),
    }[method]()
    keeper = ModelCheckpoint(tmp_path)
    trainer, module, x = lit_trainer(made, keeper, enable_checkpointing=True), Anew(), next(iter(lit_loader()))[0]
    trainer.validate(module, lit_loader(), verbose=False)
    trainer.fit(module, lit_loader())
    trained, expected = module.net, module.eval()(x)
    trainer.test(module, lit_loader(), ckpt_path="best", verbose=False)
    assert module.net is not trained
    assert torch.equal(module.eval()(x), expected)
    assert not torch.equal(lit_class().eval()(x), expected)
    trainer.test(module, lit_loader(), verbose=False)  # as plain Lightning: a network as it was built
    assert torch.equal(module.eval()(x), lit_class().eval()(x))


def test_a_head_made_in_setup_can_be_named(lit_trainer: Any, lit_loader: Any) -> None:
    module = Partial()
    callback = GPartCallback(d=4, target_modules=["backbone.0"], modules_to_save=["head"])
    trainer = lit_trainer(callback)
    trainer.fit(module, lit_loader())
    adapter = callback.adapter
    trainer.test(module, lit_loader(), verbose=False)
    assert callback.adapter is adapter
    assert adapter.model is module
    assert sorted(adapter.plan.saved) == ["head.bias", "head.weight"]
    assert sorted(adapter.plan.frozen) == ["backbone.0.bias", "backbone.0.weight"]
    assert adapter.theta.count_nonzero() == 4


def test_a_head_made_in_setup_need_not_be_named(lit_trainer: Any, lit_loader: Any) -> None:
    module = Partial()
    callback = GPartCallback(d=4, target_modules=["0"])
    trainer = lit_trainer(callback)
    trainer.fit(module, lit_loader())
    adapter = callback.adapter
    trainer.test(module, lit_loader(), verbose=False)
    assert callback.adapter is adapter


class TwoParts(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 4), nn.Tanh(), nn.Identity(), nn.Linear(4, 2))
        self.extra, self.fixed = nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return nn.functional.cross_entropy(self.fixed(self.extra(self.net(batch[0]))), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.5)


def test_outside_the_adapted_module_nothing_is_frozen_or_thawed(
    lit_gpart: Any, lit_trainer: Any, lit_loader: Any, lit_frozen_kept: Any
) -> None:
    module = TwoParts()
    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    lit_trainer(lit_gpart(module="net")).fit(module, lit_loader())
    assert not torch.equal(module.extra.weight, before["extra.weight"])
    assert not torch.equal(module.extra.bias, before["extra.bias"])
    lit_frozen_kept(module, before)
    assert {name for name, value in module.named_parameters() if not value.requires_grad} == {
        "net.0.bias",
        "net.0.weight",
        "fixed.weight",
        "fixed.bias",
    }


def test_which_module_is_adapted_by_default(lit_trainer: Any, lit_loader: Any) -> None:
    class OneChild(TwoParts):
        def __init__(self) -> None:
            super().__init__()
            self.extra, self.fixed, self.metric = nn.Identity(), nn.Identity(), nn.Softmax(-1)

    class Own(OneChild):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

    for module, adapted in ((OneChild(), "net"), (Own(), ""), (TwoParts(), "")):
        callback = GPartCallback(d=4, target_modules=["net.0" if adapted == "" else "0"])
        lit_trainer(callback).fit(module, lit_loader())
        assert callback.adapter.model is module.get_submodule(adapted)


# Adopted and refused


def test_an_equal_adapter_is_adopted_with_its_theta(
    lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    module = lit_class()
    adapter = attach(module.net, CONFIG)
    with torch.no_grad():
        adapter.theta.normal_()
    theta = adapter.theta.clone()
    callback = lit_gpart()
    lit_trainer(callback).validate(module, lit_loader(), verbose=False)
    assert callback.adapter is adapter
    assert torch.equal(adapter.theta, theta)


def test_one_attached_below_the_default_module_is_adopted(lit_gpart: Any, lit_trainer: Any, lit_loader: Any) -> None:
    module, callback = TwoParts(), lit_gpart()
    adapter = attach(module.net, CONFIG)
    lit_trainer(callback).fit(module, lit_loader())
    assert callback.adapter is adapter


OTHERS = [
    ({"d": 11}, "d is 10 and 11"),
    ({"seed": 5}, "seed is 0 and 5"),
    ({"modules_to_save": None}, r"modules_to_save is \['3'\] and None"),
    ({"isometric": False}, "isometric is True and False"),
    ({"bias": "all", "d": 3}, "d is 10 and 3; bias is 'none' and 'all'"),
]


@pytest.mark.parametrize(("change", "said"), OTHERS)
def test_another_adapter_is_refused_with_both_values(
    change: dict[str, Any], said: str, lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any, state_of: Any
) -> None:
    module = lit_class()
    attach(module.net, CONFIG)
    state = state_of(module)
    with pytest.raises(ValueError, match=f"'default' with other settings.*: {said}$"):
        lit_trainer(lit_gpart(**change)).fit(module, lit_loader())
    state.assert_kept()


def test_two_methods_in_one_trainer_are_refused(lit_gpart: Any, lit_trainer: Any, lit_loader: Any) -> None:
    callbacks = [lit_gpart(module="net"), GPartCallback(d=2, target_modules="extra", module="")]
    with pytest.raises(ValueError, match="one"):
        lit_trainer(*callbacks).fit(TwoParts(), lit_loader())


@pytest.mark.parametrize("given", [{}, {"d": 3}, {"target_modules": ["0"]}, {"d": 3, "adapter": "folder"}])
def test_half_the_settings_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"go together.*got d={given.get('d')}"):
        GPartCallback(**given)


def test_there_is_no_adapter_before_the_trainer_runs(lit_gpart: Any) -> None:
    with pytest.raises(ValueError, match="no adapter yet"):
        lit_gpart().adapter


def test_an_optimizer_for_the_head_alone_takes_no_step(
    lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    class Head(lit_class):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.net[3].parameters(), lr=0.1)

    module = Head()
    head = module.net[3].weight.detach().clone()
    with pytest.raises(ValueError, match="in no optimizer"):
        lit_trainer(lit_gpart()).fit(module, lit_loader())
    assert torch.equal(module.net[3].weight, head)


def test_a_loss_that_passes_the_layers_by_is_refused_before_the_step(
    lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    class Bypasses(lit_class):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = self.net[:3](x)
            return self.net[3](x)

    module = Bypasses()
    head = module.net[3].weight.detach().clone()
    with pytest.raises(ValueError, match=r"theta has no gradient after the first backward.*\['0\.weight'\]"):
        lit_trainer(lit_gpart()).fit(module, lit_loader())
    assert torch.equal(module.net[3].weight, head)


def test_a_merged_adapter_is_not_trained_but_tested(
    lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    module = lit_class()
    adapter = attach(module.net, CONFIG)
    adapter.merge()
    lit_trainer(lit_gpart()).test(module, lit_loader(), verbose=False)
    with pytest.raises(ValueError, match=r"'default' is merged: unmerge\(\) before fit"):
        lit_trainer(lit_gpart()).fit(module, lit_loader())
    adapter.unmerge()
    lit_trainer(lit_gpart()).fit(module, lit_loader())
    assert adapter.theta.count_nonzero() == 10


def test_several_optimizers_and_manual_steps(lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any) -> None:
    """The head's optimizer steps first, when theta has no gradient yet; that alone is no error."""

    class Manual(lit_class):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: list[Tensor], index: int) -> None:
            head, theta = self.optimizers()
            with torch.no_grad():
                features = self.net[:3](batch[0])
            self.manual_backward(nn.functional.cross_entropy(self.net[3](features), batch[1]))
            head.step()
            self.manual_backward(self.loss(batch))
            theta.step()

        def configure_optimizers(self) -> list[torch.optim.Optimizer]:
            return [torch.optim.SGD(given, lr=0.1) for given in (self.net[3].parameters(), self.net.gpart.parameters())]

    callback = lit_gpart()
    lit_trainer(callback, max_steps=6).fit(Manual(), lit_loader())
    assert callback.adapter.theta.count_nonzero() == 10


def test_the_mode_is_left_alone_and_eval_is_announced(
    lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    training: list[bool] = []

    class Looks(lit_class):
        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            training.append(self.net.training)
            return super().training_step(batch, index)

    module = Looks()
    module.net.eval()
    with pytest.warns(UserWarning, match=r"\(Sequential\) is in eval mode.*call \.train\(\)"):
        lit_trainer(lit_gpart()).fit(module, lit_loader())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*eval mode")
        lit_trainer(lit_gpart()).fit(Looks(), lit_loader())
    assert training == [False] * 3 + [True] * 3


def test_layers_built_after_are_named(lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any) -> None:
    class Adds(lit_class):
        def configure_optimizers(self) -> Any:
            self.net.add_module("late", nn.Linear(2, 2))
            return super().configure_optimizers()

    with pytest.raises(
        ValueError, match=r"\['late\.weight', 'late\.bias'\] were built after GPartCallback was applied"
    ):
        lit_trainer(lit_gpart()).fit(Adds(), lit_loader())


def test_a_module_that_builds_nothing_is_refused(lit_built_in: Any, lit_gpart: Any, lit_trainer: Any) -> None:
    class Never(lit_built_in["setup"]):
        def build(self) -> None:
            pass

    with pytest.raises(ValueError, match="matches no module"):
        lit_trainer(lit_gpart()).predict(Never(), [])


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("run_in", ["setup", "configure_model"])
def test_a_lazy_layer_may_be_run_where_the_network_is_built(
    run_in: str, lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    class Lazy(lit_class):
        def build(self) -> None:
            super().build()
            self.net[3] = nn.LazyLinear(2)

    def once(self: Any, stage: str = "") -> None:
        self.net(torch.zeros(2, 8))

    with pytest.raises(ValueError, match=r"3 \(LazyLinear\) has no shape yet: run the lazy layer once"):
        lit_trainer(lit_gpart()).fit(Lazy(), lit_loader())
    callback = lit_gpart()
    lit_trainer(callback).fit(type("Run", (Lazy,), {run_in: once})(), lit_loader())
    assert callback.adapter.theta.count_nonzero() > 0


def test_wrong_names_are_refused_and_the_module_kept(
    lit_any: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any, state_of: Any
) -> None:
    cases = [
        ({"module": "nothing"}, "module='nothing' is no submodule of .*'net'"),
        ({"target_modules": ["query"]}, "'query' matches no module"),
        ({"modules_to_save": ["classifier"]}, "'classifier' matches no module"),
        ({"d": 129}, "d=129 is more than the 128"),
    ]
    module = lit_any()
    lit_trainer().validate(module, lit_loader(), verbose=False)  # builds it
    state = state_of(module)
    for change, said in cases:
        with pytest.raises(ValueError, match=said):
            lit_trainer(lit_gpart(**change)).fit(module, lit_loader())
        state.assert_kept()


@pytest.mark.parametrize("strategy", ["ddp_spawn", DDPStrategy(start_method="forkserver")])
def test_strategies_that_bring_nothing_back_are_refused(strategy: Any, lit_class: Any, lit_gpart: Any) -> None:
    trainer = Trainer(accelerator="cpu", strategy=strategy, devices=2, logger=False)
    with pytest.raises(ValueError, match=r"not supported.*use strategy 'ddp'"):
        lit_gpart().setup(trainer, lit_class(), "fit")


# What it shows


def test_the_table_is_printed_once_and_its_bytes_are_the_checkpoints(
    lit_fitted: Any, lit_loader: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    module, trainer, path = lit_fitted()
    trainer.validate(module, lit_loader(), verbose=False)
    trainer.test(module, lit_loader(), verbose=False)
    printed = capsys.readouterr().out
    assert printed.count("GPartCallback") == 1
    rows = dict([cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines() if "│" in line)
    assert rows["adapted weights"] == "1"
    assert rows["D, their size"] == "128"
    assert rows["d, length of theta"] == "10"
    assert rows["trainable parameters"] == "44"
    assert rows["frozen parameters"] == "176"
    checkpoint = torch.load(path, weights_only=True)
    weights = sum(value.nbytes for value in checkpoint["state_dict"].values())
    assert rows["checkpoint, weights"] == f"{weights} B"
    moments = sum(
        s[key].nbytes for s in checkpoint["optimizer_states"][0]["state"].values() for key in s if "exp" in key
    )
    assert rows["checkpoint, with optimizer state"] == f"{weights + moments} B"


@pytest.mark.parametrize("name", ["default", "second"])
def test_a_logger_gets_the_norm_of_theta_and_its_rate(
    name: str, tmp_path: Path, lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    """At every step: theta as it then is, and the rate of its group, not of the head's."""
    norms: list[float] = []

    class Looks(lit_class):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            theta = [value for key, value in self.named_parameters() if key.endswith("theta")]
            return torch.optim.SGD([{"params": self.net[3].parameters(), "lr": 0.5}, {"params": theta, "lr": 0.1}])

        def on_train_batch_end(self, *given: Any) -> None:
            norms.append(callback.adapter.theta.detach().norm().item())

        def on_train_batch_start(self, batch: Any, index: int) -> None:
            self.trainer.optimizers[0].param_groups[1]["lr"] = 0.1 * (index + 1)

    callback = lit_gpart(name=name)
    logger = CSVLogger(tmp_path)
    lit_trainer(callback, logger=logger, log_every_n_steps=1).fit(Looks(), lit_loader())
    prefix = "gpart" if name == "default" else "gpart/second"
    with Path(logger.log_dir, "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row[f"{prefix}/lr"]) for row in rows] == pytest.approx([0.1, 0.2, 0.3])
    assert [float(row[f"{prefix}/theta_norm"]) for row in rows] == pytest.approx(norms, rel=1e-6)
    assert len(set(norms)) == 3
    assert callback.adapter.delta("0.weight").norm().item() == pytest.approx(norms[-1], rel=1e-5)


def test_without_a_logger_nothing_is_logged(lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any) -> None:
    trainer = lit_trainer(lit_gpart())
    trainer.fit(lit_class(), lit_loader())
    assert not [name for name in trainer.callback_metrics if name.startswith("gpart")]


@pytest.mark.parametrize("mode", [{"fast_dev_run": True}, {"barebones": True, "max_steps": 2}])
def test_lightnings_short_modes_work(mode: dict[str, Any], lit_class: Any, lit_gpart: Any, lit_loader: Any) -> None:
    callback = lit_gpart()
    given = mode if "barebones" in mode else {**mode, "enable_progress_bar": False, "logger": False}
    Trainer(accelerator="cpu", callbacks=[callback], **given).fit(lit_class(), lit_loader(), lit_loader())
    assert callback.adapter.theta.count_nonzero() > 0


def test_a_module_may_bring_the_callback_itself(
    lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    class Brings(lit_class):
        def configure_callbacks(self) -> Any:
            return callback

    callback = lit_gpart()
    lit_trainer().fit(Brings(), lit_loader())
    assert callback.adapter.theta.count_nonzero() > 0


# Beside other callbacks


def test_an_average_holds_theta_wherever_it_stands(
    lit_any: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    """theta ends as the exponential average of its own steps, whose first is taken as it is."""
    steps: list[Tensor] = []

    class Looks(lit_any):
        def on_train_batch_end(self, *given: Any) -> None:
            steps.append(self.net.gpart.default.theta.detach().clone())

    if lit_any.__name__ == "InSetup":
        pytest.skip("Lightning copies the model before a setup that builds it, with or without this callback")
    callback, average = lit_gpart(), EMAWeightAveraging(decay=0.5)
    trainer = lit_trainer(average, callback, max_steps=4)
    trainer.fit(Looks(), lit_loader())
    assert trainer.callbacks.index(callback) < trainer.callbacks.index(average)
    expected = steps[0]
    for step in steps[1:]:
        expected = 0.5 * expected + 0.5 * step
    assert not torch.allclose(expected, steps[-1])
    assert torch.allclose(callback.adapter.theta, expected, atol=1e-7)
    assert "module.net." + THETA in average._average_model.state_dict()


def test_an_average_leaves_the_frozen_weights_their_bits(
    lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any, lit_frozen_kept: Any
) -> None:
    module = lit_class()
    before = {name: value.detach().clone() for name, value in module.net.named_parameters()}
    lit_trainer(EMAWeightAveraging(decay=0.999), lit_gpart(), max_steps=12).fit(module, lit_loader())
    lit_frozen_kept(module.net, before)


@pytest.mark.parametrize("first", [True, False])
def test_stochastic_averaging_holds_theta_wherever_it_stands(
    first: bool, lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    class Constant(lit_class):
        def __init__(self) -> None:
            super().__init__()
            self.net[1] = nn.Identity()  # for BatchNorm Lightning trains an epoch more after the average is in

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    callback, average = lit_gpart(), StochasticWeightAveraging(swa_lrs=0.1, swa_epoch_start=1)
    callbacks = [average, callback] if first else [callback, average]
    lit_trainer(*callbacks, max_epochs=3).fit(Constant(), lit_loader())
    theta = average._average_model.net[0].gpart.default.theta
    assert theta.count_nonzero() == 10
    assert torch.equal(callback.adapter.theta, theta)


# From a folder, to a folder


@pytest.fixture
def folder(tmp_path: Path, lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any) -> tuple[Path, Any]:
    module = lit_class()
    lit_trainer(lit_gpart(save_folder=str(tmp_path / "adapter"))).fit(module, lit_loader())
    return tmp_path / "adapter", module


def test_the_folder_is_written_when_fit_ends_only(
    tmp_path: Path, lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    out, module = tmp_path / "out", lit_class()
    trainer = lit_trainer(lit_gpart(save_folder=str(out)))
    for stage in ("validate", "test", "predict"):
        run(trainer, stage, module, lit_loader())
        assert not out.exists()
    trainer.fit(module, lit_loader())
    fresh = lit_class()
    load_adapter(fresh.net, out)
    for key, value in module.state_dict().items():
        assert torch.equal(fresh.state_dict()[key], value), key


def test_training_starts_from_the_folder(
    folder: tuple[Path, Any], lit_any: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    path, trained = folder
    seen: list[dict[str, Tensor]] = []

    class Looks(lit_any):
        def on_train_start(self) -> None:
            seen.append({key: value.clone() for key, value in self.state_dict().items()})

    callback = GPartCallback(adapter=str(path))
    lit_trainer(callback).fit(Looks(), lit_loader())
    assert callback.adapter.config == CONFIG
    for key, value in trained.state_dict().items():
        assert torch.equal(seen[0][key], value), key
    assert not torch.equal(callback.adapter.theta, trained.net.gpart.default.theta)


@pytest.mark.parametrize(("stored", "given"), [("default", None), ("math", None), ("default", "math"), ("math", "own")])
def test_the_folder_is_read_once_over_the_stages_whatever_names_there_are(
    stored: str,
    given: str | None,
    folder: tuple[Path, Any],
    tmp_path: Path,
    lit_class: Any,
    lit_trainer: Any,
    lit_loader: Any,
) -> None:
    load_adapter(lit_class().net, folder[0], name=stored).save(tmp_path / "stored")
    module, callback = lit_class(), GPartCallback(adapter=str(tmp_path / "stored"), name=given)
    trainer = lit_trainer(callback)
    trainer.fit(module, lit_loader())
    theta = callback.adapter.theta.clone()
    trainer.test(module, lit_loader(), verbose=False)
    assert torch.equal(callback.adapter.theta, theta)
    assert not torch.equal(theta, folder[1].net.gpart.default.theta)
    assert list(get_adapters(module.net)) == [callback.name] == [given or stored]


@pytest.mark.parametrize(
    "given",
    [
        {"target_modules": "0"},  # a regular expression for the same layer
        {"exclude_modules": ["3"]},  # which leaves out nothing more
        {"dropout": 0.5},  # a run's own
        {"target_modules": None, "target_parameters": ["0.weight"]},
    ],
)
def test_settings_beside_a_folder_may_name_the_same_layers_otherwise(
    given: dict[str, Any],
    folder: tuple[Path, Any],
    tmp_path: Path,
    lit_fitted: Any,
    lit_class: Any,
    lit_gpart: Any,
    lit_trainer: Any,
    lit_loader: Any,
) -> None:
    callback = lit_gpart(adapter=str(folder[0]), **given)
    lit_trainer(callback).test(module := lit_class(), lit_loader(), verbose=False)
    assert torch.equal(callback.adapter.theta, folder[1].net.gpart.default.theta)
    assert callback.adapter.config.dropout == given.get("dropout", 0.0)
    x, layer = torch.randn(4, 8), module.train().net[0]
    assert torch.equal(layer(x), layer(x)) == ("dropout" not in given)
    # So may a run that goes on.
    _, trainer, path = lit_fitted()
    resumed = lit_gpart(**given)
    trainer = lit_trainer(resumed, max_epochs=2)
    trainer.fit(lit_class(), lit_loader(), ckpt_path=path)
    assert resumed.adapter.config.dropout == given.get("dropout", 0.0)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"isometric": False}, "isometric is True and False"),
        ({"bias": "all"}, "bias is 'none' and 'all'"),
        ({"target_modules": ["0", "3"], "modules_to_save": None}, "target_modules is"),
        ({"slices": {"0": [[0, 8]]}}, "slices is None and"),
    ],
)
def test_settings_of_another_map_are_refused(
    given: dict[str, Any], told: str, lit_fitted: Any, lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    _, _, path = lit_fitted()
    with pytest.raises(GPartError, match=told):
        lit_trainer(lit_gpart(**given), max_epochs=2).fit(lit_class(), lit_loader(), ckpt_path=path)


def test_settings_beside_a_folder_must_agree(
    folder: tuple[Path, Any], lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any, state_of: Any
) -> None:
    lit_trainer(lit_gpart(adapter=str(folder[0]))).test(lit_class(), lit_loader(), verbose=False)
    module = lit_class()
    state = state_of(module)
    with pytest.raises(ValueError, match=r"different settings: seed is 0 and 1\..* --method\.d null"):
        lit_trainer(lit_gpart(adapter=str(folder[0]), seed=1)).test(module, lit_loader(), verbose=False)
    state.assert_kept()


def test_a_folder_of_another_base_is_refused_unless_asked_for(
    folder: tuple[Path, Any], lit_class: Any, lit_trainer: Any, lit_loader: Any, state_of: Any
) -> None:
    path, trained = folder
    module = lit_class(base=1)
    state = state_of(module)
    with pytest.raises(ValueError, match=r"another base model: fingerprint \w{64}, this model has \w{64}"):
        lit_trainer(GPartCallback(adapter=str(path))).test(module, lit_loader(), verbose=False)
    state.assert_kept()
    callback = GPartCallback(adapter=str(path), check_base=False)
    with pytest.warns(UserWarning, match="check_base=False"):
        lit_trainer(callback).test(module, lit_loader(), verbose=False)
    assert torch.equal(callback.adapter.theta, trained.net.gpart.default.theta)


def test_a_checkpoint_serves_as_a_start_too(
    tmp_path: Path, lit_fitted: Any, lit_any: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    trained, trainer, path = lit_fitted()
    callback = GPartCallback(adapter=str(path))
    found = lit_trainer(callback).predict(lit_any(), lit_loader())
    expected = trainer.predict(trained, lit_loader())
    assert torch.equal(torch.cat(found), torch.cat(expected))


# Precision


@pytest.mark.parametrize(
    ("precision", "weights"),
    [("bf16-true", torch.bfloat16), ("bf16-mixed", torch.float32), ("16-mixed", torch.float32)],
)
def test_theta_is_float32_and_the_weights_are_what_the_precision_makes_them(
    precision: str, weights: torch.dtype, lit_any: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    seen: list[tuple[torch.dtype, ...]] = []

    class Looks(lit_any):
        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            parameters = {name: value.dtype for name, value in self.net.named_parameters() if name != THETA}
            seen.append((callback.adapter.theta.dtype, *set(parameters.values()), self.net[0].weight.dtype))
            return super().training_step(batch, index)

    callback = lit_gpart()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = lit_trainer(callback, precision=precision)
    if trainer.precision != precision:
        message = next(str(item.message) for item in caught if "not supported on CPU" in str(item.message))
        pytest.skip(f"{message} (tests/scenarios/test_lightning_projects.py runs that)")
    trainer.fit(Looks(), lit_loader())
    assert seen == [(torch.float32, weights, weights)] * 3
    assert {value.dtype for value in trainer.optimizers[0].state[callback.adapter.theta].values()} == {torch.float32}
    assert callback.adapter.theta.count_nonzero() == 10


def test_half_precision_weights_are_the_sum_rounded_once(
    lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    module, callback = lit_class(), lit_gpart()
    lit_trainer(callback, precision="bf16-true").fit(module, lit_loader())
    stored = get_parameter(module.net, "0.weight")
    assert stored.dtype == torch.bfloat16
    exact = stored.float() + callback.adapter.delta("0.weight")
    assert torch.equal(module.net[0].weight, exact.bfloat16())


@pytest.mark.parametrize("precision", ["bf16-true", "32-true"])
@pytest.mark.parametrize("rate", [1e-7, 0.1])
def test_a_lost_update_is_announced_and_no_other(
    rate: float, precision: str, lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        lit_trainer(lit_gpart(), precision=precision).fit(lit_class(lr=rate), lit_loader())
    said = [str(item.message) for item in caught if "lost in rounding" in str(item.message)]
    assert len(said) == (rate == 1e-7 and precision == "bf16-true")
    # The weights' rms is 0.2: between 2^-3 and 2^-2, where bfloat16's spacing is 2^-10.
    assert all(r"0.weight is torch.bfloat16 with spacing 9.8e-04" in message for message in said)


# Evaluation


@pytest.mark.parametrize("setting", ["kept", "forward"])
def test_an_evaluation_computes_each_weight_once(
    setting: str, lit_any: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any, evaluations: list[tuple[int, ...]]
) -> None:
    """Also within fit, where theta has moved between two evaluations; and nothing is kept after a loop."""
    module, callback = lit_any(), lit_gpart(weights=setting)
    trainer = lit_trainer(callback, max_epochs=2, num_sanity_val_steps=0)
    trainer.fit(module, lit_loader(), lit_loader())
    batches, weights = trainer.num_training_batches, len(callback.adapter.plan.weights)
    assert len(lit_loader()) > 1
    # Kept weights serve the step after an evaluation too.
    assert len(evaluations) == (2 * (batches + 1) - (setting == "kept")) * weights
    for stage in ("validate", "test", "predict"):
        evaluations.clear()
        run(trainer, stage, module, lit_loader())
        assert len(evaluations) == weights
        assert not callback.adapter.weights.cache.open
        assert not callback.adapter.weights.cache.values


def test_an_evaluation_that_fails_leaves_nothing_kept(
    lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    class Fails(lit_class):
        def test_step(self, batch: Any, batch_idx: int) -> None:
            super().test_step(batch, batch_idx)
            raise ZeroDivisionError

    callback, module = lit_gpart(), Fails()
    with pytest.raises(ZeroDivisionError):
        lit_trainer(callback).test(module, lit_loader(), verbose=False)
    assert not callback.adapter.weights.cache.open
    assert not callback.adapter.weights.cache.values
