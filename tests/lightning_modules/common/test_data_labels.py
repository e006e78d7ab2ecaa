"""What the data says need not be said: num_labels, labels, metrics and the loss come from the DataModule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from gpart.callbacks import GPartCallback, load_from_checkpoint
from gpart.datamodules import GLUEDataModule, MovieReviewDataModule
from gpart.errors import GPartError
from gpart.lightning_modules import ImageClassifier, SequenceClassifier
from gpart.lightning_modules.common.data_labels import DataLabels, labels_told, resolved_labels

QUIET: dict[str, Any] = dict.fromkeys(
    ["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False
)


class Own(LightningDataModule):
    """A DataModule as people write one: tensors, and maybe what it tells."""

    def __init__(self, values: torch.Tensor, /, **told: Any) -> None:
        super().__init__()
        self.values = values
        for name, value in told.items():
            setattr(self, name, value)

    def train_dataloader(self) -> DataLoader[Any]:
        rows = [{"input_ids": torch.arange(4), "labels": value} for value in self.values]
        return DataLoader(rows, batch_size=4)

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


def fitted(module: Any, data: LightningDataModule, **more: Any) -> Trainer:
    method = GPartCallback(d=20, target_modules=["query", "value"], modules_to_save="head")
    trainer = Trainer(max_steps=2, accelerator="cpu", **{"callbacks": [method], **QUIET, **more})
    trainer.fit(module, datamodule=data)
    return trainer


@pytest.mark.parametrize(
    ("labels", "told", "scores", "settled"),
    [
        (torch.arange(8) % 3, {"num_labels": 3, "labels": ("a", "b", "c")}, {"accuracy"}, (3, ["a", "b", "c"])),
        (torch.arange(8) % 4, {"num_labels": 4}, {"accuracy"}, (4, None)),
        (torch.arange(8), {"num_labels": 1}, {"pearson", "spearman"}, (1, None)),  # whole numbers are numbers
        (
            (torch.arange(24) % 2).reshape(8, 3),
            {"num_labels": 3, "labels": ["a", "b", "c"], "problem_type": "multi_label_classification"},
            {"f1", "accuracy"},
            (3, ["a", "b", "c"]),
        ),
        (torch.arange(8) % 2, {}, {"accuracy"}, (2, None)),  # it does not tell: as before
        (torch.arange(8) % 2, {"num_labels": None}, {"accuracy"}, (2, None)),
    ],
)
def test_the_model_takes_what_the_data_tells_and_a_checkpoint_holds_it(
    labels: torch.Tensor, told: dict[str, Any], scores: set[str], settled: Any, tiny_encoder: Path, tmp_path: Path
) -> None:
    module = SequenceClassifier(str(tiny_encoder))
    trainer = fitted(module, Own(labels, **told), max_epochs=1)
    names = {name.removeprefix("val/") for name in trainer.callback_metrics if name.startswith("val/")}
    assert names == {*scores, "loss"}
    assert (module.hparams["num_labels"], module.hparams["labels"]) == settled
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    loaded = load_from_checkpoint(SequenceClassifier, tmp_path / "a.ckpt")
    assert dict(loaded.hparams) == dict(module.hparams)
    assert set(loaded.val_metrics.keys(keep_base=True)) == scores
    # Scoring again keeps the same metrics, and needs no more than the checkpoint says.
    trainer.validate(module, datamodule=Own(labels, **told), verbose=False)
    assert (module.hparams["num_labels"], module.hparams["labels"]) == settled


def test_several_classes_a_text_are_learned_by_the_binary_loss_and_scored_over_all_pairs(tiny_encoder: Path) -> None:
    labels = torch.tensor([[1, 0, 1], [0, 0, 1], [1, 1, 1], [0, 0, 0]])
    module = SequenceClassifier(str(tiny_encoder), labels=["a", "b", "c"], problem_type="multi_label_classification")
    module.configure_model()
    batch = {"input_ids": torch.arange(4).repeat(4, 1), "labels": labels}
    with torch.no_grad():
        output = module.eval()(batch)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(output.logits, labels.float())
    assert output.loss.item() == pytest.approx(expected.item())
    logits = torch.tensor([[0.4, -0.4, 2.0], [-1.0, 0.1, 1.0], [3.0, -3.0, 1.0], [-1.0, -1.0, -1.0]])
    module.val_metrics.update(logits, labels.float())
    found = {name: value.item() for name, value in module.val_metrics.compute().items()}
    # Right: 2 + 1, 1, 2 and none; one is said too much (0.1), and one is missing (-3).
    assert found == {"val/f1": pytest.approx(2 * 5 / (2 * 5 + 1 + 1)), "val/accuracy": pytest.approx(10 / 12)}


@pytest.mark.parametrize(
    ("said", "told", "message"),
    [
        ({"num_labels": 2}, {"num_labels": 3}, "the model's num_labels is 2, and the data's is 3"),
        ({"labels": ["a", "b"]}, {"num_labels": 3}, "the model's num_labels is 2, and the data's is 3"),
        (
            {"labels": ["b", "a"]},
            {"num_labels": 2, "labels": ["a", "b"]},
            r"labels is \['b', 'a'\], and the data's is \['a', 'b'\]",
        ),
        ({"labels": ["a", "x"]}, {"num_labels": 2, "labels": ["a", "b"]}, r"labels is \['a', 'x'\], and the data's is"),
        (
            {"problem_type": "multi_label_classification", "num_labels": 2},
            {"num_labels": 2},
            "problem_type is multi_label_classification, and the data's is single_label_classification",
        ),
    ],
)
def test_what_contradicts_the_data_is_refused_with_both_before_anything_is_loaded(
    said: dict[str, Any], told: dict[str, Any], message: str, tmp_path: Path
) -> None:
    module = SequenceClassifier(str(tmp_path / "no-model"), **said)
    with pytest.raises(GPartError, match=message):
        fitted(module, Own(torch.arange(8) % 2, **told))


def test_other_names_for_the_classes_may_be_said(tiny_encoder: Path) -> None:
    module = SequenceClassifier(str(tiny_encoder), labels=["bad", "good"])
    fitted(module, Own(torch.arange(8) % 2, num_labels=2, labels=["no", "yes"]))
    assert module.hparams["labels"] == ["bad", "good"]


def test_what_was_said_and_agrees_stays(tiny_encoder: Path) -> None:
    module = SequenceClassifier(str(tiny_encoder), num_labels=2, labels=["no", "yes"], metrics=["f1"])
    fitted(module, Own(torch.arange(8) % 2, num_labels=2, labels=["no", "yes"]))
    assert (module.hparams["num_labels"], module.hparams["labels"], module.hparams["metrics"]) == (
        2,
        ["no", "yes"],
        ["f1"],
    )


def test_metrics_that_do_not_fit_the_datas_task_are_refused(tmp_path: Path) -> None:
    with pytest.raises(GPartError, match=r"metrics for num_labels=1 are \['pearson', 'spearman'\], got \['accuracy'\]"):
        fitted(SequenceClassifier(str(tmp_path), metrics=["accuracy"]), Own(torch.arange(8), num_labels=1))
    with pytest.raises(GPartError, match=r"metrics for multi_label_classification are \['f1', 'accuracy'\]"):
        SequenceClassifier(num_labels=3, problem_type="multi_label_classification", metrics=["matthews"])


@pytest.mark.parametrize("problem", ["multi_label_classification", "single_label_classification"])
def test_one_class_is_refused(problem: Any) -> None:
    with pytest.raises(GPartError, match=rf"problem_type='{problem}' takes two classes or more, got num_labels=1"):
        SequenceClassifier(num_labels=1, problem_type=problem)


def test_the_networks_config_has_the_names(tiny_encoder: Path) -> None:
    module = SequenceClassifier(str(tiny_encoder), labels=["no", "yes", "maybe"])
    module.configure_model()
    assert module.model is not None
    assert module.model.config.id2label == {0: "no", 1: "yes", 2: "maybe"}
    assert module.model.config.label2id["maybe"] == 2


def test_pictures_classes_are_the_datas_or_ten_as_before() -> None:
    module = ImageClassifier()
    assert module.hparams["num_labels"] is None
    module._trainer = Trainer(accelerator="cpu", **QUIET)
    module._trainer.datamodule = Own(torch.arange(2), num_labels=3, labels=("a", "b", "c"))
    module.setup("fit")
    assert (module.hparams["num_labels"], module.hparams["labels"]) == (3, ["a", "b", "c"])
    assert module.val_table.num_classes == module.test_table.num_classes == 3
    alone = ImageClassifier()
    alone._build(None)
    assert (alone.hparams["num_labels"], alone.val_table.num_classes) == (10, 10)
    other = ImageClassifier(num_labels=2)
    other._trainer = module._trainer
    with pytest.raises(GPartError, match="the model's num_labels is 2, and the data's is 3"):
        other.setup("fit")


def test_the_shipped_data_tell_their_labels(glue_folder: Path) -> None:
    assert (GLUEDataModule("mnli").num_labels, GLUEDataModule("stsb").num_labels) == (3, 1)
    assert GLUEDataModule("cola").labels == ("unacceptable", "acceptable")
    module = SequenceClassifier()
    module._trainer = Trainer(accelerator="cpu", **QUIET)
    module._trainer.datamodule = MovieReviewDataModule()
    assert labels_told(module) == DataLabels(2, ["negative", "positive"], "single_label_classification")
    module._trainer.datamodule = GLUEDataModule("stsb")
    assert labels_told(module) == DataLabels(1, None, "regression")
    module._trainer.datamodule = None
    assert labels_told(module) is None


def test_labels_of_a_regression_are_refused() -> None:
    with pytest.raises(GPartError, match=r"labels names the classes, \['a'\], and num_labels=1 is a regression"):
        resolved_labels({"labels": ["a"]}, None, 2)
