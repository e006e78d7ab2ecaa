"""The baselines' overlays: the paper's code for GLUE (rows G6 to G10), PEFT's defaults, and the methods' own papers.

The paper gives sizes alone. Where an overlay's rate is no one's, the studies tune it.
"""

from __future__ import annotations

from paper_values import ABSENT, Value

PEFT = [
    Value("method.class_path", "PeftCallback", "PEFT's own code"),
    Value("method.target_modules", "query-value", "Table 6: query and value"),
    Value("method.modules_to_save", "head", "the head is trained with every method"),
]
_DECAY = "an overlay does not know the recipe's decay of the head; the studies set both (G7)"

_DEFAULT = "the code's default for all methods, which suits no large number of weights (G10)"

RECIPES = {
    "methods/full-fine-tuning": [
        Value("method.class_path", "FullFineTuning", "Table 1: FF"),
        Value("model.lr", 2e-5, "Liu et al. 2019", "1e-3", _DEFAULT),
        Value("model.head_lr", 2e-5, "Liu et al. 2019", "1e-3", _DEFAULT),
    ],
    "methods/linear-probe": [
        Value("method.class_path", "LinearProbe", "Table 1: LP"),
        Value("method.modules_to_save", "head", "the head is trained with every method"),
        Value("model.head_lr", 1e-3, "code: its default (G10)"),
    ],
    "methods/bitfit": [
        Value("method.class_path", "BitFit", "Table 1"),
        Value("method.modules_to_save", "head", "the head is trained with every method"),
        Value("model.lr", 1e-3, "code: its default (G10); within Ben Zaken et al. 2022"),
        Value("model.head_lr", 1e-3, "code: its default (G10)"),
    ],
    "methods/lora": [
        *PEFT,
        Value("method.peft_type", "LORA", "Table 1"),
        Value("method.settings.r", 8, "Table 1: 294 K"),
        Value("method.settings.lora_alpha", 8, "Hu et al. 2022, for RoBERTa"),
        Value("method.settings.lora_dropout", 0.1, "code (G6)"),
        Value("model.lr", 5e-4, "Hu et al. 2022"),
        Value("model.head_lr", 5e-4, "Hu et al. 2022"),
        Value("model.weight_decay", ABSENT, "the recipe's: matrices are decayed"),
    ],
    "methods/vera": [
        *PEFT,
        Value("method.peft_type", "VERA", "Table 1"),
        Value("method.settings.r", 1024, "Table 1: 43 K"),
        Value("method.settings.save_projection", False, "the matrices come from their seed"),
        Value("method.settings.vera_dropout", 0.1, "code (G6)"),
        Value("model.lr", 1e-2, "tuned around it"),
        Value("model.head_lr", 4e-3, "Kopiczko et al. 2024"),
        Value("model.weight_decay", ABSENT, "the recipe's", "weight_decay 0", _DECAY),
    ],
    "methods/uni-lora": [
        *PEFT,
        Value("method.peft_type", "UNILORA", "Table 1"),
        Value("method.settings.r", 4, "PEFT's default"),
        Value("method.settings.theta_d_length", 23040, "Table 1: 23 K"),
        Value("method.settings.unilora_dropout", 0.1, "code (G6)"),
        Value("model.lr", 5e-3, "code (G9)"),
        Value("model.head_lr", 1e-3, "for any task", "CoLA 5e-3, SST-2 1e-4, MRPC 2e-2, QNLI 2e-4, RTE 5e-4, STS-B 2e-4",
              "an overlay is for any task; the studies choose among these (G9)"),
        Value("model.weight_decay", ABSENT, "the recipe's", "weight_decay 0", _DECAY),
    ],
    "methods/fourierft": [
        *PEFT,
        Value("method.peft_type", "FOURIERFT", "Table 3"),
        Value("method.settings.n_frequency", 1000, "usual for GLUE; the paper has no figure"),
        Value("method.settings.scaling", 150.0, "PEFT's default"),
        Value("model.lr", 5e-2, "tuned around it"),
        Value("model.head_lr", 5e-3, "tuned around it"),
        Value("model.weight_decay", ABSENT, "the recipe's"),
    ],
}  # fmt: skip
SAID: dict[str, list[str]] = {
    "methods/full-fine-tuning": ["Liu et al. 2019"],
    "methods/linear-probe": [],
    "methods/bitfit": ["Ben Zaken et al. 2022"],
    "methods/lora": ["--method.settings.lora_dropout 0.0"],
    "methods/vera": ["--method.settings.vera_dropout 0.0", "--model.weight_decay 0 --model.head_weight_decay 0.1"],
    "methods/uni-lora": [
        "--method.settings.unilora_dropout 0.0",
        "--model.weight_decay 0 --model.head_weight_decay 0.1",
    ],
    "methods/fourierft": [],
}
