"""GLUE: the paper's Tables 1 and 6, and its code as the audit of 2026-11 read it (rows G1 to G11).

No matter, and so in no header (docs/recipes.md names it): G11, the warm-up's and an epoch's steps are rounded otherwise.
"""

from __future__ import annotations

from typing import Any

from paper_values import ABSENT, Value

# Table 6: epochs and the head's rate; last, what the code has in the place of each (G3), "" where it agrees.
TABLE_6: dict[str, tuple[int, float, str, str]] = {
    "glue/sst2": (60, 5e-4, "", ""),
    "glue/mrpc": (30, 1e-3, "", ""),
    "glue/cola": (80, 2e-4, "", "2e-3"),
    "glue/qnli": (25, 1e-3, "", ""),
    "glue/rte": (160, 1e-2, "", ""),
    "glue/stsb": (80, 2e-4, "", ""),
    "glue-large/sst2": (30, 2e-4, "", ""),
    "glue-large/mrpc": (30, 1e-3, "40", "2e-3"),
    "glue-large/cola": (60, 2e-3, "", "2e-2"),
    "glue-large/qnli": (25, 1e-3, "", "5e-3"),
    "glue-large/rte": (120, 1e-2, "", "5e-3"),
    "glue-large/stsb": (80, 2e-4, "", "1e-4"),
}
METRICS: dict[str, tuple[list[str], list[str] | None]] = {
    "cola": (["matthews", "accuracy"], ["unacceptable", "acceptable"]),
    "sst2": (["accuracy"], ["negative", "positive"]),
    "mrpc": (["accuracy", "f1"], ["not_equivalent", "equivalent"]),
    "stsb": (["pearson", "spearman"], None),
    "qnli": (["accuracy"], ["entailment", "not_entailment"]),
    "rte": (["accuracy"], ["entailment", "not_entailment"]),
}


def _recipe(name: str) -> list[Value]:
    epochs, head_lr, epochs_in_code, head_lr_in_code = TABLE_6[name]
    large, task = name.startswith("glue-large"), name.split("/")[1]
    metrics, labels = METRICS[task]
    encoder = f"FacebookAI/roberta-{'large' if large else 'base'}"
    table = "the paper and its code disagree (G3): the table is what was published" if head_lr_in_code else ""
    seed = "a run of one's own is one run; the studies follow its seed"
    values: list[tuple[Any, ...]] = [
        ("seed_everything", 0, "the first of three"),
        ("trainer.max_epochs", epochs, "Table 6", epochs_in_code, table if epochs_in_code else ""),
        ("trainer.gradient_clip_val", ABSENT, "code: no clipping"),
        ("trainer.accumulate_grad_batches", ABSENT, "code: none"),
        ("trainer.precision", ABSENT, "code: fp32"),
        ("trainer.callbacks", {"monitor": f"val/{metrics[0]}", "mode": "max"}, "section 5.1, code: the best epoch"),
        ("model.class_path", "SequenceClassifier", "code: dense and out_proj are RoBERTa's own head"),
        ("model.model", encoder, "section 5.1, code"),
        ("model.num_labels", 1 if task == "stsb" else 2, "GLUE"),
        ("model.metrics", metrics, "section 5.1"),
        ("model.labels", ABSENT if labels is None else labels, "GLUE"),
        ("model.head_bias_at_mean", False if task == "stsb" else ABSENT, "code: the bias starts at 0"),
        ("model.lr", 5e-3, "Table 6"),
        ("model.head_lr", head_lr, "Table 6", head_lr_in_code, table),
        ("model.weight_decay", 0.1, "Table 6; code: theta and the head's weights, not its biases"),
        ("model.head_weight_decay", ABSENT, "code: as theta's"),
        ("model.warmup_ratio", 0.06, "Table 6"),
        ("model.schedule", "linear", "Table 6"),
        ("data.class_path", "GLUEDataModule", "section 5.1: scored on the validation set"),
        ("data.task", task, "GLUE"),
        ("data.model", encoder, "the model's tokenizer"),
        ("data.batch_size", 32, "Table 6"),
        (
            "data.max_length",
            128 if large else 512,
            "Table 6",
            *(("512", "texts are rarely longer (G4)") if large else ()),
        ),
        ("data.held_out", 0.15, "code (G1)", "a portion", "the paper leaves it open"),
        ("data.seed", ABSENT, "0 (G2)", "run's seed", seed),
        ("method.class_path", "GPartCallback", "the paper's method"),
        ("method.d", 23040, "Table 6"),
        ("method.target_modules", ["query", "value"], "Table 6"),
        ("method.modules_to_save", "head", "code"),
        ("method.dropout", 0.1, "code", "none", "the paper does not speak of it"),
        ("method.seed", ABSENT, "0 (G2)", "run's seed", seed),
        ("method.isometric", ABSENT, "true: the paper's method"),
    ]
    return [Value(*value) for value in values]


RECIPES = {name: _recipe(name) for name in TABLE_6}
# G5: the paper's deviation divides by n, ours by n - 1, and 1.22 is the root of 3 / 2.
_SAID = [
    "Table 1",
    "Table 6",
    "n - 1",
    "1.22 times",
    "--seed_everything N --data.seed N --method.seed N",
    "H100",
    "GiB",
]
SAID = {name: [*_SAID, "is 86.3" if name.startswith("glue-large") else "is 83.7"] for name in TABLE_6}
