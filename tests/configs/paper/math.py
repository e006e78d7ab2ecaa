"""Mathematics: the paper's Tables 2 and 7, its code as the audit of 2026-11 read it (rows M1 to M14), and PEFT's comparison.

No matter, and so in no header: M11's other order has a sentence there, and M12, where a text is cut, since none is so long.
"""

from __future__ import annotations

from typing import Any

from paper_values import ABSENT, Value

# Tables 2 and 7: model, d, warm-up (a guess, see below), GSM8K / MATH, GiB, hours.
PAPER: dict[str, tuple[str, int, float, str, int, int]] = {
    "math/qwen2.5-0.5b": ("Qwen/Qwen2.5-0.5B", 131_072, 0.05, "46.70 / 21.16", 19, 4),
    "math/qwen2.5-3b": ("Qwen/Qwen2.5-3B", 524_288, 0.02, "79.30 / 41.40", 31, 8),
    "math/qwen2.5-7b": ("Qwen/Qwen2.5-7B", 524_288, 0.02, "81.43 / 50.42", 45, 15),
    "math/gemma-7b": ("google/gemma-7b", 524_288, 0.02, "71.42 / 24.80", 66, 21),
    "math/llama-3.1-8b": ("meta-llama/Llama-3.1-8B", 524_288, 0.02, "69.45 / 22.36", 53, 17),
}


def _recipe(name: str) -> list[Value]:
    model, d, warmup = PAPER[name][:3]
    silent = "the paper says nothing, and the code made its numbers"
    other = "0.02" if warmup == 0.05 else "0.05"
    values: list[tuple[Any, ...]] = [
        ("seed_everything", 0, "one run a model"),
        ("trainer.max_epochs", 2, "Table 7"),
        ("trainer.accumulate_grad_batches", 8, "Table 7"),
        ("trainer.gradient_clip_val", 1.0, "code (M3)", "none", silent),
        ("trainer.precision", "bf16-true", "Table 7's memory; code: a bf16 base", "none", silent),
        ("trainer.callbacks", {"monitor": "val/loss", "mode": "min"}, "M9: by the rows held out"),
        ("model.class_path", "CausalLM", "the paper's models"),
        ("model.model", model, "Table 2"),
        ("model.lr", 2e-4, "Table 7"),
        ("model.weight_decay", 0.05, "Table 7", "0.01", "M8: the table was published"),
        ("model.warmup_ratio", warmup, "Table 7 has two rows", other, "M7: their models are not in our text"),
        ("model.schedule", "cosine", "Table 7"),
        ("model.max_new_tokens.gsm8k", 1024, "code (M5)", "none", silent),
        ("model.max_new_tokens.math", 2048, "code (M5)", "none", silent),
        ("model.stop", ["Question", "[Question"], "code (M4)", "none", silent),
        ("data.class_path", "MathDataModule", "section 5.2"),
        ("data.model", model, "the model's tokenizer"),
        ("data.batch_size", 2, "Table 7"),
        ("data.max_length", 2048, "Table 7"),
        ("data.completion_only_loss", False, "code (M2)", "true", f"MetaMath learns the answer alone; {silent}"),
        ("data.held_out", ABSENT, "0.01 (M9)", "none", "a checkpoint needs something to be chosen by"),
        ("data.prompt", ABSENT, "code (M1): its text is the default"),
        ("method.class_path", "GPartCallback", "the paper's method"),
        ("method.d", d, "Table 7"),
        ("method.target_modules", ["q_proj", "k_proj", "v_proj", "o_proj"], "Table 7"),
        ("method.dropout", 0.05, "code"),
        ("method.seed", ABSENT, "0 (M14)", "42", "their seed gives other groups than the same seed here"),
    ]
    return [Value(*value) for value in values]


_LLAMA = "meta-llama/Llama-3.2-3B"
_COMPARISON: list[tuple[Any, ...]] = [
    ("seed_everything", 0, "default_training_params.json"),
    ("trainer.max_steps", 5000, "default_training_params.json"),
    ("trainer.precision", "bf16-true", "default_training_params.json: bfloat16"),
    ("trainer.gradient_clip_val", 1.0, "default_training_params.json"),
    ("trainer.val_check_interval", 250, "default_training_params.json"),
    (
        "trainer.callbacks",
        {"monitor": "val/gsm8k_train/exact_match", "mode": "max"},
        "README.md: validation is on GSM8K's training set",
        "last",
        "the checkpoint that the validation chooses is what a user would keep",
    ),
    ("model.class_path", "CausalLM", "run.py"),
    ("model.model", _LLAMA, "default_training_params.json"),
    ("model.lr", 2e-4, "Table 7", "1e-4", "it is the paper's for theta, and each method there has its own"),
    ("model.weight_decay", 0.1, "default_training_params.json"),
    ("model.warmup_ratio", 0.1, "utils.py (audit 1.4)"),
    ("model.schedule", "cosine", "default_training_params.json"),
    ("model.max_new_tokens", 300, "default_training_params.json"),
    ("data.class_path", "MathDataModule", "data.py"),
    ("data.model", _LLAMA, "the model's tokenizer"),
    ("data.benchmarks", ["gsm8k"], "README.md"),
    (
        "data.prompt",
        "Question: {question} Think step by step.\nAnswer:",
        "default_training_params.json",
        "none",
        "a blank before a word belongs to the word's token",
    ),
    ("data.batch_size", 4, "default_training_params.json"),
    ("data.eval_batch_size", 50, "default_training_params.json"),
    ("data.max_length", 768, "default_training_params.json", "1300", "a text is cut, not left out"),
    ("data.held_out", 0.001, "ours", "none", "val/loss is measured on it"),
    ("data.completion_only_loss", False, "data.py: all tokens"),
    ("data.val_questions", 50, "run.py"),
    ("data.val_questions_of", "gsm8k", "README.md"),
    ("method.class_path", "GPartCallback", "the paper's method"),
    ("method.d", 131_072, "ours: as the paper's smallest"),
    ("method.target_modules", ["q_proj", "v_proj"], "PEFT's default for Llama"),
]

RECIPES = {
    **{name: _recipe(name) for name in PAPER},
    "math/peft-comparison": [Value(*value) for value in _COMPARISON],
}
SAID = {
    **{
        name: ["Table 2", "Table 7", f"MATH {scores}", "H100", f"{memory} GiB, {hours} hours", "Compare exact_match"]
        for name, (_, _, _, scores, memory, hours) in PAPER.items()
    },
    "math/peft-comparison": ["test/gsm8k/exact_match", "L40S", "942 s"],
}
