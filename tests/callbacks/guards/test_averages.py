"""Copies of the model that are averaged: StochasticWeightAveraging's in memory and in checkpoints, and those made too early.

WeightAveraging's are in test_callback.py, test_resume.py and test_checkpoint.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging
from torch import Tensor, nn

from gpart.callbacks import load_from_checkpoint

THETA = "net.0.gpart.default.theta"
HEAD = ["net.3.weight", "net.3.bias"]
BUFFERS = ["net.1.running_mean", "net.1.running_var", "net.1.num_batches_tracked"]
EPOCHS = 4


def swa(**more: Any) -> StochasticWeightAveraging:
    """Averages from the second epoch on."""
    return StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=2, annealing_epochs=2, **more)


@pytest.fixture
def plain(lit_class: Any) -> Any:
    """The project without BatchNorm, for which Lightning would train another epoch, and with a constant rate."""

    class Plain(lit_class):
        def __init__(self) -> None:
            super().__init__()
            self.net[1] = nn.Identity()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Plain


@pytest.fixture
def fit(lit_gpart: Any, lit_trainer: Any, lit_loader: Any, tmp_path: Path) -> Any:
    """Fits beside an average, with a checkpoint at every epoch's end; returns the trainer."""

    def run(module: Any, average: Any, folder: str = "kept", **more: Any) -> Any:
        keeper = ModelCheckpoint(tmp_path / folder, "{epoch}", save_top_k=-1)
        trainer = lit_trainer(average, lit_gpart(), keeper, max_epochs=EPOCHS, enable_checkpointing=True)
        trainer.fit(module, lit_loader(), **more)
        return trainer

    return run


def test_theta_ends_as_the_mean_of_its_epochs(plain: Any, fit: Any) -> None:
    """Lightning takes what there is when each epoch starts, from the one that was asked for on."""
    starts: list[Tensor] = []

    class Looks(plain):
        def on_train_epoch_start(self) -> None:
            starts.append(self.net.gpart.default.theta.detach().clone())

    module = Looks()
    fit(module, swa())
    expected = torch.stack(starts[1:]).mean(0)
    assert not torch.allclose(expected, starts[-1], rtol=1e-3)
    assert torch.allclose(module.net.gpart.default.theta, expected, atol=1e-7)


def test_its_checkpoints_hold_no_frozen_weight(lit_class: Any, fit: Any, tmp_path: Path) -> None:
    """Its callback's state has a whole copy of the model, which stands beside the model's own."""
    module = lit_class()
    fit(module, swa())
    checkpoint = torch.load(tmp_path / "kept" / "epoch=2.ckpt", weights_only=True)
    (state,) = (state for name, state in checkpoint["callbacks"].items() if "StochasticWeightAveraging" in name)
    assert sorted(state["average_model_state"]) == sorted([THETA, *HEAD, *BUFFERS])
    loaded = load_from_checkpoint(lit_class, tmp_path / "kept" / "epoch=2.ckpt")
    assert torch.equal(loaded.net.gpart.default.theta, checkpoint["state_dict"][THETA])


@pytest.mark.parametrize("epoch", range(EPOCHS - 1))
def test_a_resumed_run_ends_as_the_uncut_one(epoch: int, plain: Any, fit: Any, tmp_path: Path) -> None:
    """Of the copy all comes back, its frozen weights from the live module."""
    whole, resumed = plain(), plain()
    fit(whole, swa())
    again = swa()
    fit(resumed, again, "again", ckpt_path=tmp_path / "kept" / f"epoch={epoch}.ckpt")
    assert again.n_averaged == EPOCHS - 1
    for key, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key
    copy = again._average_model.state_dict()
    assert torch.equal(copy["net.0.bias"], whole.net[0].bias)


def test_the_epoch_for_the_batch_norms_resumes(lit_class: Any, fit: Any, tmp_path: Path) -> None:
    """It has no backward pass: theta has no gradient there, and nothing is wrong.

    An uncut run takes one more step there, with the gradients that the last step left, without GPart too.
    """
    fit(lit_class(), swa())
    resumed, average = lit_class(), swa()
    trainer = fit(resumed, average, "again", ckpt_path=tmp_path / "kept" / f"epoch={EPOCHS - 1}.ckpt")
    assert trainer.current_epoch == EPOCHS + 1
    assert torch.equal(resumed.net.gpart.default.theta, average._average_model.net.gpart.default.theta)
    assert resumed.net[1].num_batches_tracked == 4


@pytest.mark.parametrize("norms", [True, False])
def test_an_average_that_rounds_leaves_the_frozen_weights_their_bits(
    norms: bool, plain: Any, lit_class: Any, fit: Any, lit_frozen_kept: Any
) -> None:
    module = (lit_class if norms else plain)()
    before = {name: value.detach().clone() for name, value in module.net.named_parameters()}
    fit(module, swa(avg_fn=lambda old, new, count: 0.9 * old + 0.1 * new))
    lit_frozen_kept(module.net, before)
    assert module.net.gpart.default.theta.count_nonzero() == 10


@pytest.mark.parametrize(
    ("where", "average"),
    [("setup", swa), ("configure_model", swa), ("setup", lambda: EMAWeightAveraging(decay=0.5))],
)
@pytest.mark.parametrize("first", [True, False])
def test_a_copy_without_a_network_is_refused(
    first: bool, where: str, average: Any, lit_built_in: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    """Lightning copies the module before it has built its network, and averages nothing, without a word."""
    callbacks = [lit_gpart(), average()] if first else [average(), lit_gpart()]
    with pytest.raises(ValueError, match=r"Averaging copies the module in its setup.*no network.*in __init__"):
        lit_trainer(*callbacks, max_epochs=EPOCHS).fit(lit_built_in[where](), lit_loader())


def test_a_copy_without_a_part_is_refused_with_its_names(
    lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    class Grows(lit_class):
        def setup(self, stage: str) -> None:
            self.further = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.further(self.net(x))

    callbacks = lit_gpart(module="net"), swa()
    with pytest.raises(
        ValueError, match=r"StochasticWeightAveraging .*Grows had no \['further.weight', 'further.bias'\]"
    ):
        lit_trainer(*callbacks, max_epochs=EPOCHS).fit(Grows(), lit_loader())


def test_evaluating_beside_a_copy_that_is_empty_works(
    lit_built_in: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    """Outside of fit nothing is averaged."""
    lit_trainer(lit_gpart(), swa(), max_epochs=EPOCHS).validate(lit_built_in["setup"](), lit_loader(), verbose=False)


@pytest.mark.parametrize("adopted", [True, False])
def test_what_was_unfrozen_before_fit_is_refused(
    adopted: bool, lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    """The callback finds the flags as someone has set them since: by a second fit, or with an adapter it adopts."""
    module, method = lit_class(), lit_gpart()
    if adopted:
        method.apply(module.net)
        method = lit_gpart()
    else:
        lit_trainer(method).fit(module, lit_loader())
    module.net[1].requires_grad_(True)
    with pytest.raises(ValueError, match=r"\['1.weight', '1.bias'\] of Sequential require a gradient"):
        lit_trainer(method).fit(module, lit_loader())
