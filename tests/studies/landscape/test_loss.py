"""The validation loss of modules that log it in other ways than ours for sentences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric
from transformers import BatchEncoding

from gpart.errors import GPartError
from gpart.studies.finished_run import LoadedRun
from gpart.studies.landscape.loss import ValidationLoss, validation_loss
from gpart.studies.trained_vector import trained_vector

ROWS = torch.tensor([1.0, 2.0, 4.0])


class Tokens(LightningModule):
    """Logs a metric whose weights are no rows, as a language model's tokens; the loss of a row x is (p·x)²."""

    def __init__(self, names: tuple[str, ...] = ("val/loss",)) -> None:
        super().__init__()
        self.p, self.names, self.mean = torch.nn.Parameter(torch.tensor([3.0])), names, MeanMetric()

    def validation_step(self, batch: Tensor, index: int) -> None:
        self.mean.update(((self.p * batch) ** 2).mean(), weight=10.0 if index else 30.0)
        for name in self.names:
            self.log(name, self.mean)


class Data(LightningDataModule):
    def val_dataloader(self) -> list[Any]:
        return [DataLoader(ROWS, batch_size=2), DataLoader(-ROWS)]  # the second is for something else


def loss_of(module: LightningModule, *monitored: str) -> ValidationLoss:
    vector = trained_vector(module)
    run = LoadedRun(module, Data(), module, "FullFineTuning", vector, False, vector.read(), frozenset(monitored))
    return validation_loss(run)


def test_a_mean_metric_has_its_own_weights_and_its_hessian() -> None:
    loss = loss_of(Tokens())
    mean = (30 * (1 + 4) / 2 + 10 * 16) / 40
    assert loss.rows == 3
    assert loss.at(torch.tensor([2.0])) == pytest.approx(4 * mean)
    assert loss.at(torch.tensor([2.0])) == pytest.approx(4 * mean)  # nothing was kept from before
    assert loss.hessian_product(torch.tensor([0.5])).tolist() == pytest.approx([mean])


@pytest.mark.parametrize("names", [("accuracy",), ("a/loss", "b/loss"), ("val/loss", "val_loss", "b/loss")])
def test_it_is_the_one_name_that_ends_in_loss(names: tuple[str, ...]) -> None:
    with pytest.raises(GPartError, match="expected one name that ends in 'loss'"):
        loss_of(Tokens(names), "accuracy").at(torch.ones(1))


class Several(LightningModule):
    """Logs numbers, each by its name."""

    def __init__(self, **values: float) -> None:
        super().__init__()
        self.p, self.values = torch.nn.Parameter(torch.tensor([3.0])), values

    def validation_step(self, batch: Tensor, index: int) -> None:
        self.log_dict({name.replace("__", "/"): value * self.p.item() for name, value in self.values.items()})


@pytest.mark.parametrize(
    ("names", "monitored"),
    [
        (("l1_loss", "val_loss"), ()),
        (("val/l1_loss", "val/loss"), ("val/l1_loss",)),
        (("a_loss", "val_l1_loss"), ("accuracy", "val_l1_loss")),
    ],
)
def test_of_several_losses_it_is_the_plain_one_else_the_monitored_one(
    names: tuple[str, ...], monitored: tuple[str, ...]
) -> None:
    values = {name.replace("/", "__"): float(at) for at, name in enumerate(names, start=1)}
    assert loss_of(Several(**values), *monitored).at(torch.tensor([2.0])) == pytest.approx(4)


def digest(batch: object) -> str:
    module = Tokens()
    return ValidationLoss(module, trained_vector(module), [batch], 1).digest()


def test_the_digest_tells_batches_of_every_kind_apart() -> None:
    plain = {"x": torch.arange(6).view(2, 3), "y": torch.tensor([0.5, 1.0])}
    assert digest(plain) == "4eb84f7cce7db606"  # as the records of older versions have it
    assert digest(BatchEncoding(plain)) == digest(plain)
    assert digest(BatchEncoding({**plain, "y": torch.tensor([0.5, 1.5])})) != digest(plain)
    assert digest({"w": torch.tensor(1.0)}) != digest({"w": torch.tensor(2.0)})


def test_a_number_is_a_loss_but_has_no_hessian() -> None:
    loss = loss_of(Several(val_loss=0.5))
    assert loss.at(torch.tensor([3.0])) == 1.5
    with pytest.raises(GPartError, match=r"Several logs has no graph, as a number.*or leave it out by --steps 0"):
        loss.hessian_product(torch.ones(1))


def test_a_loss_without_its_graph_has_no_hessian() -> None:
    class Detached(Tokens):
        def validation_step(self, batch: Tensor, index: int) -> None:
            self.log("val_loss", (self.p * batch).detach().mean())

    loss = loss_of(Detached())
    assert loss.at(torch.ones(1)) == pytest.approx(7 / 3)  # a smaller batch counts less
    with pytest.raises(GPartError, match="has no graph"):
        loss.hessian_product(torch.ones(1))
