"""Under Lightning's ``deterministic=True`` two runs are equal to the last bit, and no operation is refused."""

from __future__ import annotations

from collections.abc import Iterator

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from gpart.callbacks import GPartCallback
from gpart.config import INDICES, WEIGHTS

NEEDS_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
DEVICES = ["cpu", pytest.param("cuda", marks=NEEDS_GPU)]


class Regression(pl.LightningModule):
    """Two layers, a dropout, and a head; keeps its losses."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Dropout(0.1), nn.Linear(64, 32))
        self.head = nn.Linear(32, 1)
        self.losses: list[Tensor] = []

    def training_step(self, batch: list[Tensor]) -> Tensor:
        loss = (self.head(self.body(batch[0])) - batch[1]).square().mean()
        self.losses.append(loss.detach().cpu())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=0.01)


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(mode=False)


def run(device: str, folder: str, indices: str, weights: str) -> list[Tensor]:
    """The losses, theta and the head of a run of twelve steps, two micro-batches each."""
    pl.seed_everything(0, verbose=False)
    module = Regression()
    adapter = {"d": 97, "target_modules": ["0", "3"], "modules_to_save": ["head"], "dropout": 0.2}
    rows = TensorDataset(torch.randn(96, 32), torch.randn(96, 1))
    trainer = pl.Trainer(
        accelerator="gpu" if device == "cuda" else "cpu",
        devices=1,
        deterministic=True,
        max_epochs=2,
        accumulate_grad_batches=2,
        callbacks=[GPartCallback(**adapter, indices=indices, weights=weights)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(module, DataLoader(rows, batch_size=8, shuffle=True))
    assert torch.are_deterministic_algorithms_enabled()
    trained = [p.detach().cpu() for p in module.parameters() if p.requires_grad]
    assert [p.numel() for p in trained] == [32, 1, 97]
    return [torch.stack(module.losses), *trained]


# Under this flag torch also fills fresh memory with NaN, so that a read of what nobody wrote would show.
@pytest.mark.filterwarnings("ignore:.*num_workers.*", "ignore:.*log_every_n_steps.*", "ignore:GPU available")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("indices", INDICES)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_two_deterministic_runs_are_equal_to_the_bit(tmp_path, device, indices, weights) -> None:
    first, second = (run(device, str(tmp_path), indices, weights) for _ in range(2))
    assert all(one.equal(other) for one, other in zip(first, second, strict=True))
    assert all(value.isfinite().all() for value in first)
    assert first[-1].abs().min() > 0
