"""SnapshotWriter keeps the start, every n-th step and the last, and what was trained then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from gpart.callbacks import PeftCallback, SnapshotWriter
from gpart.errors import GPartError


class Seen(Callback):
    """Copies what is trained before the first step and after each."""

    def __init__(self) -> None:
        self.values: dict[int, dict[str, torch.Tensor]] = {}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.on_train_batch_end(trainer, pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        named = pl_module.named_parameters()
        self.values[trainer.global_step] = {name: p.detach().clone() for name, p in named if p.requires_grad}


def test_every_third_step_and_both_ends(lit_class: Any, lit_trainer: Any, lit_loader: Any, tmp_path: Path) -> None:
    seen, method = Seen(), PeftCallback("LORA", ["0"], ["3"], {"r": 2})
    callbacks = [method, SnapshotWriter(3), seen]
    trainer = lit_trainer(*callbacks, max_epochs=1, default_root_dir=tmp_path, enable_checkpointing=True)
    trainer.fit(lit_class(), lit_loader())
    last = trainer.global_step
    files = sorted((tmp_path / "snapshots").iterdir())
    assert [file.name for file in files] == [f"step={step:06d}.ckpt" for step in (0, 3, last)]
    for step, file in zip((0, 3, last), files, strict=True):
        content = torch.load(file, weights_only=True)
        assert content["global_step"] == step
        assert "optimizer_states" not in content
        for name, value in seen.values[step].items():
            assert torch.equal(content["state_dict"][name], value), (step, name)
    assert any("lora_A" in name for name in seen.values[0])


def test_a_folder_of_its_own_and_accumulated_batches(
    lit_class: Any, lit_trainer: Any, lit_loader: Any, lit_gpart: Any, tmp_path: Path
) -> None:
    writer = SnapshotWriter(1, str(tmp_path / "own"))
    trainer = lit_trainer(lit_gpart(), writer, max_epochs=1, accumulate_grad_batches=2, enable_checkpointing=True)
    trainer.fit(lit_class(), lit_loader())
    assert len(list((tmp_path / "own").iterdir())) == trainer.global_step + 1


def test_no_steps_between_are_refused() -> None:
    with pytest.raises(GPartError, match="every_n_steps must be 1 or more, got 0"):
        SnapshotWriter(0)
