"""Rows of ``padding_idx`` stay as they are, and files from before manifest format 2, which adapt them, load as they were.

The files in tests/files/padding_format_1 were written at b6a45a1 by tests/files/make_padding.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from gpart import GPartConfig, GPartError, attach, load_adapter
from gpart.callbacks import GPartCallback
from gpart.injection.targets import plan

FILES = Path(__file__).parents[1] / "files" / "padding_format_1"
QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}


class Scaled(nn.Embedding):
    """As Transformers' scaled word embeddings: a class of its own that reads ``self.weight``."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class Tied(nn.Module):
    """The decoder comes first, and shares the embedding's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder, self.words = nn.Linear(4, 6, bias=False), nn.Embedding(6, 4, padding_idx=5)
        self.decoder.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.words(x))


EMBEDDINGS = [
    (lambda: nn.Embedding(6, 4, padding_idx=0), 0),
    (lambda: nn.Embedding(6, 4, padding_idx=-2), 4),
    (lambda: nn.EmbeddingBag(6, 4, padding_idx=3), 3),
    (lambda: Scaled(6, 4, padding_idx=2), 2),
]


@pytest.mark.parametrize(("build", "row"), EMBEDDINGS)
def test_the_row_stays_through_training_and_merging(
    build: Any, row: int, same_bits: Any, reference_groups: Any
) -> None:
    model = nn.Sequential(build(), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight[row] = torch.tensor([1.0, -2.0, 3.0, -0.0])
    first = model[0].weight.detach().clone()
    adapter = attach(model, GPartConfig(5, ["0"]))
    assert adapter.size == 5 * 4
    optimizer = torch.optim.SGD([adapter.theta], 1.0)
    model(torch.arange(6).view(2, 3)).square().sum().backward()
    optimizer.step()
    moved = torch.tensor([number for number in range(6) if number != row])
    groups = torch.from_numpy(reference_groups(20, 5, 0)).long()
    delta = (adapter.theta.detach() / torch.bincount(groups).sqrt())[groups].view(5, 4)
    assert same_bits(model[0].weight[row], first[row])
    assert torch.allclose(model[0].weight[moved], first[moved] + delta)
    assert delta.abs().min() > 0
    adapter.merge_and_unload()
    assert same_bits(model[0].weight[row], first[row])


def test_slices_and_a_tied_decoder_leave_it_out_too() -> None:
    made = plan(nn.ModuleDict({"e": nn.Embedding(6, 4, padding_idx=2)}), GPartConfig(2, ["e"], slices={"e": [[1, 4]]}))
    assert made.weights[0].blocks == ((1, 2, 0), (3, 4, 4))
    tied = plan(Tied(), GPartConfig(2, ["decoder"]))
    assert (tied.size, tied.weights[0].blocks, tied.weights[0].name) == (20, ((0, 5, 0),), "decoder.weight")


def test_without_such_a_row_nothing_changes() -> None:
    model = nn.Sequential(nn.Embedding(6, 4), nn.EmbeddingBag(3, 4))
    old, new = (plan(model, GPartConfig(2, ["0", "1"]), rows) for rows in (True, False))
    assert old == new
    assert new.described() == [["0.weight", [6, 4]], ["1.weight", [3, 4]]]


def test_a_file_names_the_row_and_does_not_load_onto_another(tmp_path: Path) -> None:
    def model(row: int) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Embedding.from_pretrained(torch.randn(6, 4), padding_idx=row))

    adapter = attach(model(1), GPartConfig(5, ["0"]))
    torch.nn.init.normal_(adapter.theta)
    adapter.save(tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (written["format"], written["size"], written["weights"]) == (2, 20, [["0.weight", [6, 4], 1]])
    again = model(1)
    load_adapter(again, tmp_path)
    assert again[0].weight.equal(adapter.model[0].weight)
    with pytest.raises(GPartError, match=r"only there \[\['0\.weight', \[6, 4\], 1\]\], only here .* 2\]\]"):
        load_adapter(model(2), tmp_path)


class Lit(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(6, 4, padding_idx=1)
        self.out = nn.Linear(4, 2)
        with torch.no_grad():
            for value in self.parameters():
                value.copy_((torch.arange(value.numel()) * 37 % 101 - 50).view(value.shape) / 64)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return self.out(self.words(batch[0])).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.25)


def rows() -> DataLoader:
    return DataLoader(TensorDataset(torch.arange(24).view(4, 6) % 6), batch_size=2)


@pytest.mark.parametrize("source", ["adapter", "run.ckpt"])
def test_an_older_file_comes_to_the_same_bits_and_is_written_again_as_it_was(source: str, tmp_path: Path) -> None:
    lit = Lit()
    adapter = load_adapter(lit, FILES / source)
    assert adapter.size == 24
    assert lit.words.weight.equal(torch.load(FILES / "words.pt", weights_only=True))
    assert load_adapter(lit, FILES / source) is adapter
    adapter.save(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["format"] == 1
    again = Lit()
    load_adapter(again, tmp_path)
    assert again.words.weight.equal(lit.words.weight)


def test_training_goes_on_from_an_older_checkpoint() -> None:
    callback = GPartCallback(adapter=str(FILES / "adapter"))
    trainer = Trainer(max_steps=4, accelerator="cpu", callbacks=[callback], **QUIET)
    lit = Lit()
    trainer.fit(lit, rows(), ckpt_path=FILES / "run.ckpt")
    assert trainer.global_step == 4
    assert callback.adapter.size == 24


def test_an_attached_adapter_of_today_says_how_to_load_an_older_file() -> None:
    lit = Lit()
    adapter = attach(lit, GPartConfig(5, ["words"], modules_to_save=["out"]))
    with pytest.raises(GPartError, match=r"of format 1, .*D = 24, here D = 20 .*GPartCallback\(adapter="):
        load_adapter(lit, FILES / "adapter")
    assert not adapter.theta.any()
