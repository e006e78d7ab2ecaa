"""SequenceClassifier: the optimizer's groups, the schedule, regression, predictions, activation checkpointing."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from torch import nn
from transformers import AutoModelForSequenceClassification

from gpart.callbacks import GPartCallback
from gpart.datamodules import GLUEDataModule
from gpart.errors import GPartError
from gpart.lightning_modules import CausalLM, ImageClassifier, SequenceClassifier
from gpart.lightning_modules.common.metrics import _CLASSES, _REGRESSION, MetricName
from gpart.lightning_modules.common.optimizers import SCHEDULES, Schedule


@pytest.fixture
def module(tiny_encoder: Path) -> Any:
    return lambda **more: SequenceClassifier(**{"model": str(tiny_encoder), "lr": 1e-3, **more})


@pytest.fixture
def data(glue_folder: Path, tiny_encoder: Path) -> Any:
    return lambda task="rte", **more: GLUEDataModule(
        task, **{"model": str(tiny_encoder), "path": str(glue_folder), "batch_size": 8, **more}
    )


def fitted(module: SequenceClassifier, data: GLUEDataModule, *callbacks: Callback, **more: Any) -> Trainer:
    quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    trainer = Trainer(**{"max_steps": 4, "accelerator": "cpu", "callbacks": list(callbacks), **quiet, **more})
    trainer.fit(module, datamodule=data)
    return trainer


def groups_of(module: SequenceClassifier, trainer: Trainer) -> dict[str, tuple[float, float]]:
    """Peak learning rate and weight decay by parameter name."""
    rates = trainer.lr_scheduler_configs[0].scheduler.base_lrs
    found: dict[int, tuple[float, float]] = {}
    for group, rate in zip(trainer.optimizers[0].param_groups, rates, strict=True):
        found |= {id(value): (rate, group["weight_decay"]) for value in group["params"]}
    return {name: found[id(value)] for name, value in module.model.named_parameters() if id(value) in found}


def test_the_head_has_its_own_rate_and_decay_and_biases_and_norms_are_not_decayed(module: Any, data: Any) -> None:
    own = module(lr=1e-4, head_lr=2e-3, weight_decay=0.1, head_weight_decay=0.3)
    groups = groups_of(own, fitted(own, data()))
    assert set(groups) == {name for name, _ in own.model.named_parameters()}
    for name, group in groups.items():
        undecayed = name.endswith("bias") or "LayerNorm" in name
        if name.startswith("classifier."):
            assert group == (2e-3, 0.0 if undecayed else 0.3), name
        else:
            assert group == (1e-4, 0.0 if undecayed else 0.1), name
    assert groups["roberta.embeddings.LayerNorm.weight"] == (1e-4, 0.0)


def test_theta_has_the_rest_of_the_models_rate_and_is_decayed(module: Any, data: Any) -> None:
    own = module(lr=1e-2, head_lr=1e-3, weight_decay=0.1)
    method = GPartCallback(d=20, target_modules=["query", "value"], modules_to_save=["classifier"])
    groups = groups_of(own, fitted(own, data(), method))
    theta = method.adapter.theta_name
    assert groups.pop(theta) == (1e-2, 0.1)
    assert groups == {
        "classifier.dense.weight": (1e-3, 0.1),
        "classifier.dense.bias": (1e-3, 0.0),
        "classifier.out_proj.weight": (1e-3, 0.1),
        "classifier.out_proj.bias": (1e-3, 0.0),
    }


def test_by_default_the_head_shares_rate_and_decay(module: Any, data: Any) -> None:
    own = module(lr=3e-3, weight_decay=0.2)
    groups = groups_of(own, fitted(own, data()))
    assert (
        groups["classifier.dense.weight"]
        == groups["roberta.encoder.layer.0.attention.self.query.weight"]
        == (3e-3, 0.2)
    )


class Rates(Callback):
    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.seen.append(optimizer.param_groups[0]["lr"])


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_the_schedule_rises_over_the_warm_up_and_ends_at_0(schedule: str, module: Any, data: Any) -> None:
    rates = Rates()
    fitted(module(lr=1.0, warmup_ratio=0.25, schedule=schedule), data(), rates, max_steps=16)
    want = [step / 4 for step in range(4)]
    for step in range(12):
        left = {"linear": 1 - step / 12, "cosine": 0.5 * (1 + math.cos(math.pi * step / 12)), "constant": 1.0}
        want.append(left[schedule])
    assert rates.seen == pytest.approx(want)


def test_regression_trains_by_squared_error_and_scores_by_correlation(module: Any, data: Any) -> None:
    own = module(num_labels=1, lr=1e-2)
    trainer = fitted(own, data("stsb"), max_steps=30)
    scores = {name: value for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    assert set(scores) == {"val/loss", "val/pearson", "val/spearman"}
    tested = trainer.test(own, datamodule=data("stsb"), verbose=False)[0]
    assert set(tested) == {"test/pearson", "test/spearman"}
    batch = next(iter(trainer.datamodule.test_dataloader()))
    assert batch["labels"].dtype == torch.float32
    with torch.no_grad():
        output = own.eval()(batch)
    assert output.loss.item() == pytest.approx(((output.logits[:, 0] - batch["labels"]) ** 2).mean().item())
    rows = own.predict_step({key: value for key, value in batch.items() if key != "labels"}, 0)
    assert rows["score"] == pytest.approx(output.logits[:, 0].tolist(), abs=1e-4)
    assert rows["idx"] == batch["idx"]


class FirstBias(Callback):
    """The head's bias before the first step."""

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.value = pl_module.model.classifier.out_proj.bias.item()


@pytest.mark.parametrize("method", [(), (GPartCallback(d=9, target_modules=["query"], modules_to_save="head"),)])
def test_a_regressions_new_head_starts_at_the_mean_of_the_training_labels(
    module: Any, data: Any, method: tuple[Callback, ...]
) -> None:
    first, rows = FirstBias(), data("stsb")
    fitted(module(num_labels=1), rows, *method, first)
    train, held = rows.parts["train"]["labels"], rows.parts["val"]["labels"]
    assert first.value == pytest.approx(sum(train) / len(train))
    assert sum(train) / len(train) != pytest.approx(sum([*train, *held]) / len([*train, *held]))


def test_the_bias_stays_at_0_if_that_is_asked_or_the_data_do_not_tell(module: Any, data: Any) -> None:
    first, off, loaders = FirstBias(), module(num_labels=1, head_bias_at_mean=False), module(num_labels=1)
    fitted(off, data("stsb"), first)
    assert first.value == 0.0
    rows = data("stsb")
    rows.setup("fit")
    quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    Trainer(max_steps=1, accelerator="cpu", callbacks=[first], **quiet).fit(loaders, rows.train_dataloader())
    assert first.value == 0.0


def test_a_head_that_was_trained_keeps_its_bias(module: Any, data: Any, tmp_path: Path) -> None:
    trained = module(num_labels=1)
    trained.configure_model()
    torch.nn.init.constant_(trained.model.classifier.out_proj.bias, -7.0)
    trained.model.save_pretrained(tmp_path / "model")
    first = FirstBias()
    fitted(module(model=str(tmp_path / "model"), num_labels=1), data("stsb"), first)
    assert first.value == -7.0


def test_a_resumed_head_keeps_its_bias(module: Any, data: Any, tmp_path: Path) -> None:
    before, first = module(num_labels=1, lr=0.1, schedule="constant"), FirstBias()
    trainer = fitted(before, data("stsb"))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    again = Trainer(max_steps=5, accelerator="cpu", callbacks=[first], **quiet)
    again.fit(
        module(num_labels=1, lr=0.1, schedule="constant"), datamodule=data("stsb"), ckpt_path=tmp_path / "last.ckpt"
    )
    assert first.value == before.model.classifier.out_proj.bias.item()


def test_the_metrics_are_those_of_the_whole_part(module: Any, data: Any) -> None:
    own = module(metrics=["accuracy", "f1", "matthews"], lr=1e-2)
    trainer = fitted(own, data("mrpc"), max_steps=12)
    tested = trainer.test(own, datamodule=data("mrpc"), verbose=False)[0]
    answers, labels = [], []
    own.eval()
    with torch.no_grad():
        for batch in trainer.datamodule.test_dataloader():
            answers += own(batch).logits.argmax(-1).tolist()
            labels += batch["labels"].tolist()
    right = sum(a == b for a, b in zip(answers, labels, strict=True))
    assert tested["test/accuracy"] == pytest.approx(right / len(labels))
    both = sum(a and b for a, b in zip(answers, labels, strict=True))
    assert tested["test/f1"] == pytest.approx(2 * both / max(1, sum(answers) + sum(labels)))


def test_predictions_name_the_class_and_its_probability(module: Any, data: Any) -> None:
    own = module(labels=["entailment", "not_entailment"])
    own.configure_model()
    part = data()
    part.setup("predict")
    batch = next(iter(part.predict_dataloader()))
    with torch.no_grad():
        rows = own.eval().predict_step(batch, 0)
        want = own(batch).logits.softmax(-1)
    assert rows["label"] == [["entailment", "not_entailment"][i] for i in want.argmax(-1).tolist()]
    assert rows["probability"] == pytest.approx(want.max(-1).values.tolist(), abs=1e-4)
    assert rows["idx"] == batch["idx"]


def test_activation_checkpointing_changes_no_gradient(module: Any, data: Any) -> None:
    part = data()
    part.setup("validate")
    batch = next(iter(part.val_dataloader()))

    def gradients(checkpointing: bool) -> tuple[list[torch.Tensor], int]:
        torch.manual_seed(0)
        own = module(gradient_checkpointing=checkpointing)
        own.configure_model()
        GPartCallback(d=20, target_modules=["query", "value"], modules_to_save=["classifier"]).apply(own.model)
        calls = 0

        def count(layer: nn.Module, inputs: Any) -> None:
            nonlocal calls
            calls += 1

        own.model.roberta.encoder.layer[0].attention.register_forward_pre_hook(count)
        torch.manual_seed(1)
        own(batch).loss.backward()
        return [value.grad for value in own.model.parameters() if value.grad is not None], calls

    plain, once = gradients(False)
    recomputed, twice = gradients(True)
    assert (once, twice) == (1, 2)  # the layer really is run again in the backward pass
    assert all(torch.equal(a, b) for a, b in zip(plain, recomputed, strict=True))


def test_it_trains_with_dropout_on(module: Any) -> None:
    own = module()
    own.configure_model()
    assert own.model.training


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"schedule": "step"}, "one of .*'linear', 'cosine', 'constant'.*, got 'step'"),
        ({"warmup_ratio": 1.5}, "from 0 to 1, got 1.5"),
        ({"labels": ["a"], "num_labels": 2}, "labels names 1 classes, num_labels is 2"),
        ({"labels": ["a"]}, r"labels names the classes, \['a'\], and num_labels=1 is a regression"),
        ({"metrics": ["pearson"], "num_labels": 2}, "metrics for num_labels=2"),
        ({"num_labels": 0}, "num_labels must be at least 1, got 0"),
    ],
)
def test_a_setting_out_of_range_is_refused(module: Any, more: dict[str, Any], said: str) -> None:
    with pytest.raises(GPartError, match=said):
        module(**more)


def test_the_choices_in_the_help_are_the_schedules_and_metrics() -> None:
    assert get_args(Schedule) == tuple(SCHEDULES)
    assert set(get_args(MetricName)) == {*_CLASSES, *_REGRESSION}
    hints = get_type_hints(SequenceClassifier.__init__)
    assert (hints["schedule"], hints["metrics"]) == (Schedule, list[MetricName] | None)
    assert {get_type_hints(module.__init__)["schedule"] for module in (CausalLM, ImageClassifier)} == {Schedule}


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("config.json", b"{}", "can't be loaded: Unrecognized model"),
        ("config.json", b"{not", "can't be loaded, as a folder or from the hub: .*not a valid JSON file"),
        ("model.safetensors", b"damaged" * 9, "can't be loaded: .*header"),
    ],
)
def test_a_damaged_model_is_named(
    file: str, content: bytes, said: str, tiny_encoder: Path, module: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_encoder, folder)
    (folder / file).write_bytes(content)
    with pytest.raises(GPartError, match=f"model '{folder}' {said}"):
        module(model=str(folder)).configure_model()


def test_a_head_of_another_number_of_classes_is_refused(module: Any, tmp_path: Path) -> None:
    three = module(num_labels=3)
    three.configure_model()
    three.model.save_pretrained(tmp_path)
    with pytest.raises(GPartError, match=f"model '{tmp_path}' can't be loaded: num_labels=2 does not fit its weights"):
        module(model=str(tmp_path)).configure_model()
    kept = module(model=str(tmp_path), num_labels=3)
    kept.configure_model()
    assert torch.equal(kept.model.classifier.out_proj.weight, three.model.classifier.out_proj.weight)


def test_a_fault_of_transformers_keeps_its_type(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*words: Any, **settings: Any) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", fail)
    with pytest.raises(RuntimeError, match=r"^a fault$"):
        module().configure_model()


def test_a_head_that_is_not_there_is_named(module: Any, data: Any) -> None:
    with pytest.raises(
        GPartError, match=r"head=\['score'\] is no submodule of RobertaFor.*\['roberta', 'classifier'\]"
    ):
        fitted(module(head="score"), data())


def test_nothing_to_train_is_named(module: Any, data: Any) -> None:
    own = module()
    own.configure_model()
    own.requires_grad_(False)
    with pytest.raises(GPartError, match="there is nothing to train"):
        fitted(own, data())
