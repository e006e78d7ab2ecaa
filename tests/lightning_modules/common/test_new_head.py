"""A head that nothing has trained is not scored and predicts nothing, whichever way a trained one may come."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from transformers import AutoModelForSequenceClassification

from gpart.callbacks import FullFineTuning, GPartCallback, LinearProbe, PeftCallback
from gpart.datamodules import GLUEDataModule
from gpart.errors import GPartError
from gpart.lightning_modules import SequenceClassifier

TARGETS = r".*\.(query|value)"
METHODS = {
    "GPart": lambda: GPartCallback(d=20, target_modules=TARGETS, modules_to_save="head"),
    "LoRA": lambda: PeftCallback("LORA", target_modules=TARGETS, modules_to_save="head", settings={"r": 1}),
    "linear probe": lambda: LinearProbe("head"),
    "full fine-tuning": FullFineTuning,
    "none": lambda: None,
}
SAID = r"would use classifier\.dense\.weight.*initialised at random.*--ckpt_path FILE.*--method\.adapter FOLDER"


def trainer(*callbacks: Callback | None, **more: Any) -> Trainer:
    quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    given = [callback for callback in callbacks if callback is not None]
    return Trainer(**{**quiet, "max_steps": 2, "accelerator": "cpu", "callbacks": given, **more})


@pytest.fixture
def data(glue_folder: Path, tiny_encoder: Path) -> GLUEDataModule:
    return GLUEDataModule("rte", model=str(tiny_encoder), path=str(glue_folder), batch_size=8)


@pytest.mark.parametrize("method", METHODS)
def test_an_untrained_head_is_refused_and_a_trained_one_is_not(
    method: str, tiny_encoder: Path, data: GLUEDataModule, tmp_path: Path
) -> None:
    def module() -> SequenceClassifier:
        return SequenceClassifier(str(tiny_encoder), lr=1e-2)

    for stage in ("test", "predict"):
        with pytest.raises(GPartError, match=f"^{stage} {SAID}"):
            getattr(trainer(METHODS[method]()), stage)(module(), datamodule=data)
    trainer(METHODS[method]()).validate(module(), datamodule=data, verbose=False)  # it only compares
    own, fitted = module(), trainer(METHODS[method]())
    fitted.fit(own, datamodule=data)
    fitted.test(own, datamodule=data, verbose=False)
    fitted.save_checkpoint(tmp_path / "own.ckpt")
    # The file, in a new process's place.
    trainer(METHODS[method]()).predict(module(), datamodule=data, ckpt_path=tmp_path / "own.ckpt")


def test_an_adapter_brings_the_head(tiny_encoder: Path, data: GLUEDataModule, tmp_path: Path) -> None:
    method = METHODS["GPart"]()
    trainer(method).fit(SequenceClassifier(str(tiny_encoder)), datamodule=data)
    method.adapter.save(tmp_path)
    again = GPartCallback(adapter=str(tmp_path))
    trainer(again).predict(SequenceClassifier(str(tiny_encoder)), datamodule=data)


def test_who_means_it_says_so(tiny_encoder: Path, data: GLUEDataModule) -> None:
    own = SequenceClassifier(str(tiny_encoder), allow_untrained_head=True)
    trainer().test(own, datamodule=data, verbose=False)


def test_a_head_of_the_checkpoint_is_trained(tiny_encoder: Path, data: GLUEDataModule, tmp_path: Path) -> None:
    """Somebody's classifier, as it comes from the hub."""
    AutoModelForSequenceClassification.from_pretrained(tiny_encoder, num_labels=2).save_pretrained(tmp_path)
    trainer().test(SequenceClassifier(str(tmp_path)), datamodule=data, verbose=False)


def test_one_changed_number_is_enough(tiny_encoder: Path) -> None:
    own = SequenceClassifier(str(tiny_encoder))
    own.configure_model()
    assert own._new_head.untrained(own.model)
    with torch.no_grad():
        own.model.classifier.out_proj.bias[1] = 1e-8
    assert not own._new_head.untrained(own.model)
