"""Several networks of one LightningModule, each with an adapter of its own: a GAN, two towers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import two_adapters
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from gpart import GPartConfig, GPartError, active_adapters, attach, get_adapters, load_adapter, set_active
from gpart.callbacks import GPartCallback, load_from_checkpoint
from gpart.callbacks.guards.together import overlap
from gpart.callbacks.optimizers import group_of

X = torch.randn(12, 6, generator=torch.Generator().manual_seed(1))


class GAN(LightningModule):
    """Two networks, two optimizers, each made of the parameters of one network, and steps by hand."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6))
        self.discriminator = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))
        self.scale = nn.Parameter(torch.ones(()))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        real, noise = batch[0], batch[0][:, :4].sin()
        first, second = self.optimizers()
        self.toggle_optimizer(first)
        loss = -self.discriminator(self.scale * self.generator(noise)).mean()
        first.zero_grad()
        self.manual_backward(loss)
        first.step()
        self.untoggle_optimizer(first)
        self.toggle_optimizer(second)
        fake = self.discriminator(self.generator(noise).detach())
        loss = nn.functional.softplus(-self.discriminator(real)).mean() + nn.functional.softplus(fake).mean()
        second.zero_grad()
        self.manual_backward(loss)
        second.step()
        self.untoggle_optimizer(second)

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.Adam([*self.generator.parameters(), self.scale], lr=0.02),
            torch.optim.SGD(self.discriminator.parameters(), lr=0.125),
        ]


def apart(**more: Any) -> list[GPartCallback]:
    """An adapter for each network."""
    return [
        GPartCallback(d=9, module="generator", target_modules=["0", "2"], name="made", **more),
        GPartCallback(d=7, module="discriminator", target_modules=["0"], modules_to_save=["2"], name="judged", **more),
    ]


def within() -> list[GPartCallback]:
    """Two adapters of the LightningModule itself, each for the layers of one network."""
    return [
        GPartCallback(d=9, target_modules=r"generator\.(0|2)", name="made"),
        GPartCallback(d=7, target_modules=r"discriminator\.0", modules_to_save=["discriminator.2"], name="judged"),
    ]


def fit(module: LightningModule, used: list[Any], folder: Path, epochs: int = 2, **more: Any) -> Trainer:
    return two_adapters.fit(module, TensorDataset(X), used, folder, epochs, **more)


def outputs(module: Any) -> list[Tensor]:
    with torch.no_grad():
        return [module.generator(X[:, :4]), module.discriminator(X)]


def same(one: Any, other: Any) -> bool:
    return all(torch.equal(first, second) for first, second in zip(outputs(one), outputs(other), strict=True))


def by_hand(epochs: int) -> tuple[nn.Module, nn.Module]:
    """The same steps without Lightning or a callback: two adapters, two optimizers."""
    module = GAN()
    made = attach(module.generator, GPartConfig(d=9, target_modules=["0", "2"]), name="made")
    judged = attach(module.discriminator, GPartConfig(d=7, target_modules=["0"], modules_to_save=["2"]), name="judged")
    first = torch.optim.Adam([made.theta, module.scale], lr=0.02)
    second = torch.optim.SGD([judged.theta, *judged.model[2].parameters()], lr=0.125)
    generator, discriminator, real = module.generator, module.discriminator, None
    for _ in range(epochs):
        for real in X.split(4):
            noise = real[:, :4].sin()
            loss = -discriminator(module.scale * generator(noise)).mean()
            first.zero_grad()
            loss.backward()
            first.step()
            loss = nn.functional.softplus(-discriminator(real)).mean()
            loss = loss + nn.functional.softplus(discriminator(generator(noise).detach())).mean()
            second.zero_grad()
            loss.backward()
            second.step()
    return generator, discriminator


@pytest.mark.parametrize(("chosen", "number"), [(apart, 5), (within, 4)])  # with the module's own scale, without
def test_each_theta_is_trained_by_its_networks_optimizer(
    tmp_path: Path, chosen: Callable[[], list[GPartCallback]], number: int
) -> None:
    module, used = GAN(), chosen()
    trainer = fit(module, used, tmp_path)
    for callback, optimizer in zip(used, trainer.optimizers, strict=True):
        assert group_of(callback.adapter.theta, [optimizer]) is not None
        assert callback.adapter.theta.abs().min() > 0
    held = [value for one in trainer.optimizers for group in one.param_groups for value in group["params"]]
    trained = [value for value in held if value.requires_grad]
    assert {id(value) for value in trained} == {id(value) for value in module.parameters() if value.requires_grad}
    assert len(trained) == len({id(value) for value in trained}) == number  # two thetas, a head of two
    assert same(load_from_checkpoint(GAN, tmp_path / "epoch=1.ckpt"), module)


def test_the_bits_are_those_of_the_steps_by_hand(tmp_path: Path) -> None:
    module = GAN()
    fit(module, apart(), tmp_path)
    generator, discriminator = by_hand(2)
    assert torch.equal(module.generator(X[:, :4]), generator(X[:, :4]))
    assert torch.equal(module.discriminator(X), discriminator(X))


def test_a_checkpoint_holds_both_and_brings_both_back(tmp_path: Path) -> None:
    module = GAN()
    fit(module, apart(), tmp_path)
    path = tmp_path / "epoch=1.ckpt"
    state = torch.load(path, weights_only=True)["state_dict"]
    assert sorted(key for key in state if not key.startswith("This checkpoint")) == [
        "discriminator.0.gpart.judged.theta",
        "discriminator.2.bias",
        "discriminator.2.weight",
        "generator.0.gpart.made.theta",
        "scale",
    ]
    loaded = load_from_checkpoint(GAN, path)
    assert same(loaded, module)
    assert torch.equal(loaded.scale, module.scale)
    assert active_adapters(loaded.generator) == {"made": 1.0}
    assert active_adapters(loaded.discriminator) == {"judged": 1.0}
    fresh = GAN()
    load_adapter(fresh.generator, path, name="made")  # each alone, onto its network
    load_adapter(fresh.discriminator, path, name="judged")
    assert same(fresh, module)
    with pytest.raises(GPartError, match=r"several adapters, \['made', 'judged'\]: name one of them, as .*:made$"):
        load_adapter(GAN().generator, path)
    with pytest.raises(GPartError, match=r"0[.]weight has shape \[8, 4\] in the file"):
        load_adapter(GAN().discriminator, path, name="made")


def test_a_resumed_fit_ends_on_the_same_bits(tmp_path: Path) -> None:
    whole, second = GAN(), GAN()
    fit(whole, apart(), tmp_path / "whole", epochs=3)
    fit(GAN(), apart(), tmp_path / "parts", epochs=1)
    fit(second, apart()[::-1], tmp_path / "parts", epochs=3, ckpt_path=tmp_path / "parts" / "epoch=0.ckpt")
    assert same(whole, second)
    assert torch.equal(whole.scale, second.scale)


def test_which_adapters_were_active_is_kept_for_each_network(tmp_path: Path) -> None:
    module = GAN()
    for network in (module.generator, module.discriminator):  # of one name in both
        attach(network, GPartConfig(d=3, target_modules=["2"], seed=4), name="before")
        set_active(network, [])
    with torch.no_grad():
        get_adapters(module.generator)["before"].theta.fill_(0.5)
    set_active(module.generator, "before", weights=[0.5])
    get_adapters(module.generator)["before"].theta.requires_grad_(False)
    fit(module, apart(), tmp_path, epochs=1)
    path = tmp_path / "epoch=0.ckpt"
    loaded = load_from_checkpoint(GAN, path)
    assert active_adapters(loaded.generator) == {"before": 0.5, "made": 1.0}
    assert active_adapters(loaded.discriminator) == {"judged": 1.0}
    assert same(loaded, module)
    with pytest.raises(GPartError, match=r"as .*:made; got 'before', which is the name of 2"):
        load_adapter(GAN().generator, path, name="before")
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["gpart"]["networks"]["generator"] = 3
    torch.save(checkpoint, path)
    with pytest.raises(GPartError, match="'generator' 3, where a dict is expected"):
        load_from_checkpoint(GAN, path)


def test_a_file_of_one_network_is_refused_by_two(tmp_path: Path) -> None:
    fit(GAN(), apart(), tmp_path / "two", epochs=1)
    with pytest.raises(GPartError, match="adapts submodule 'discriminator', 'generator', here it is 'generator'"):
        fit(GAN(), apart()[:1], tmp_path / "b", ckpt_path=tmp_path / "two" / "epoch=0.ckpt")
    changed = [apart()[0], GPartCallback(d=7, module="discriminator", target_modules=["0"], seed=3, name="judged")]
    with pytest.raises(GPartError, match="seed is 0 and 3"):
        fit(GAN(), changed, tmp_path / "b", ckpt_path=tmp_path / "two" / "epoch=0.ckpt")


class Towers(LightningModule):
    """Two towers, one optimizer, and a last layer of the module's own beside them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
        self.right = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
        self.temperature = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.temperature.exp() * self.left(x) @ self.right(x).T

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), torch.arange(len(batch[0])))

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("loss", nn.functional.cross_entropy(self(batch[0]), torch.arange(len(batch[0]))))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.02)


def towers(folder: Path | None = None, **more: Any) -> list[GPartCallback]:
    return [
        GPartCallback(
            d=5,
            module=side,
            target_modules="all-linear",
            seed=seed,
            name=side,
            save_folder=None if folder is None else str(folder / side),
            **more,
        )
        for seed, side in enumerate(("left", "right"))
    ]


def test_each_tower_gets_a_folder_and_the_best_step(tmp_path: Path) -> None:
    module = Towers()
    keeper = ModelCheckpoint(tmp_path, monitor="loss", filename="best")
    trainer = Trainer(
        max_epochs=4, accelerator="cpu", logger=False, callbacks=[*towers(tmp_path), keeper], enable_progress_bar=False
    )
    loader = DataLoader(TensorDataset(X), batch_size=4)
    trainer.fit(module, loader, loader)
    fresh, best = Towers(), load_from_checkpoint(Towers, keeper.best_model_path)
    for side in ("left", "right"):
        load_adapter(getattr(fresh, side), tmp_path / side)
    fresh.temperature = best.temperature
    assert torch.equal(fresh(X), best(X))
    (found,) = trainer.validate(module, loader, ckpt_path="best", verbose=False)
    assert found["loss"] == pytest.approx(float(keeper.best_model_score), abs=0)


def test_merged_at_the_end_both_are_plain(tmp_path: Path) -> None:
    module = Towers()
    fit(module, towers(merge_at_end=True), tmp_path)
    assert not [key for key in module.state_dict() if "gpart" in key]
    assert torch.equal(load_from_checkpoint(Towers, tmp_path / "epoch=1.ckpt")(X), module(X))


def test_an_average_of_both(tmp_path: Path) -> None:
    module = Towers()
    used = [*towers(), StochasticWeightAveraging(0.02, swa_epoch_start=1)]
    fit(module, used, tmp_path, epochs=3)
    resumed = Towers()
    used = [*towers(), StochasticWeightAveraging(0.02, swa_epoch_start=1)]
    fit(resumed, used, tmp_path / "b", epochs=3, ckpt_path=tmp_path / "epoch=1.ckpt")
    assert torch.equal(resumed(X), module(X))
    callbacks = torch.load(tmp_path / "epoch=1.ckpt", weights_only=True)["callbacks"]
    (average,) = [state["average_model_state"] for state in callbacks.values() if "average_model_state" in state]
    assert sorted(average) == ["left.0.gpart.left.theta", "right.0.gpart.right.theta", "temperature"]


class Nested(Towers):
    def __init__(self) -> None:
        super().__init__()
        self.left = nn.ModuleDict({"inner": self.left})

    def forward(self, x: Tensor) -> Tensor:
        return self.left["inner"](x) @ self.right(x).T


@pytest.mark.parametrize("other", ["left", None])
def test_a_network_inside_another_is_refused(tmp_path: Path, other: str | None) -> None:
    module = Nested()
    before = set(module.state_dict())
    used = [
        GPartCallback(d=5, module="left.inner", target_modules="all-linear", name="a"),
        GPartCallback(d=5, module=other, target_modules="all-linear", name="b"),
    ]
    with pytest.raises(GPartError, match=r"may contain each other, 'left[.]inner' and"):
        fit(module, used, tmp_path)
    assert set(module.state_dict()) == before


def test_paths_that_only_begin_alike_are_apart() -> None:
    assert not overlap("net", "net2")
    assert overlap("", "net")
    assert overlap("net.a", "net")


def test_merged_checkpoints_are_for_one_adapter(tmp_path: Path) -> None:
    with pytest.raises(GPartError, match="holds one adapter's W0"):
        fit(Towers(), [towers()[0], towers(checkpoints="merged")[1]], tmp_path)
