"""Fake questions with answers, as MetaMathQA, GSM8K and MATH lie on the hub, and tokenizers of decoders."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

CHAT = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
"""Ends each turn by a token of its own and writes the beginning itself, as most templates."""

CHAT_EOS = CHAT.replace("<|end|>", "{{ eos_token }}")


def qa(number: int, rng: random.Random) -> tuple[str, str]:
    numbers = [rng.randint(1, 99) for _ in range(rng.randint(2, 12))]
    total = sum(numbers)
    return (
        f"Row {number}: what is {' plus '.join(map(str, numbers))}?",
        f"{' + '.join(map(str, numbers))} = {total}.\nThe answer is: {total}",
    )


def pairs(count: int, seed: int = 0) -> list[tuple[str, str]]:
    rng = random.Random(seed)
    return [qa(number, rng) for number in range(count)]


def metamath(folder: Path, count: int = 80, extra: list[dict[str, Any]] | None = None) -> Path:
    """One JSON file, as in ``meta-math/MetaMathQA``; ``extra`` rows come last."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"query": query, "response": response, "type": "GSM_Rephrased", "original_question": query}
        for query, response in pairs(count)
    ]
    whole = {"type": "MATH_AnsAug", "original_question": ""}
    (folder / "MetaMathQA-395K.json").write_text(json.dumps([*rows, *({**whole, **one} for one in extra or [])]))
    return folder


def gsm8k(folder: Path, splits: dict[str, int] | None = None) -> Path:
    """Two configurations of parquet files and a README that names them, as in ``openai/gsm8k``."""
    from datasets import Dataset

    splits = splits or {"train": 30, "test": 13}
    lines = ["---", "configs:"]
    for config in ("main", "socratic"):
        lines += [f"- config_name: {config}", "  data_files:"]
        (folder / config).mkdir(parents=True)
        for seed, (split, count) in enumerate(splits.items()):
            both = pairs(count, seed=seed + 1)
            data = {"question": [q for q, _ in both], "answer": [f"{config}: {a}" for _, a in both]}
            Dataset.from_dict(data).to_parquet(folder / config / f"{split}-00000-of-00001.parquet")
            lines += [f"  - split: {split}", f"    path: {config}/{split}-*.parquet"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
    return folder


def math(folder: Path) -> Path:
    """Parquet files under ``data``, in the columns of MATH."""
    from datasets import Dataset

    (folder / "data").mkdir(parents=True)
    for seed, (split, count) in enumerate({"train": 8, "test": 9}.items()):
        both = pairs(count, seed=seed + 5)
        data = {
            "problem": [f"{q} Use $\\frac{{1}}{{1}}$." for q, _ in both],
            "level": ["Level 1"] * count,
            "type": ["Algebra"] * count,
            "solution": [f"{a} So $\\boxed{{{a.split()[-1]}}}$." for _, a in both],
        }
        Dataset.from_dict(data).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def tokenizer(
    folder: Path, template: str | None = None, eos: bool = True, ends: bool = False, letters: str = "", size: int = 400
) -> Path:
    """A byte-level BPE that puts ``<s>`` before a text (with ``ends``, ``</s>`` after it), as a Hugging Face folder."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    texts = [text for pair in pairs(60, seed=99) for text in pair] + ["Question: \nAnswer:", letters]
    special = ["<pad>", "<s>", "</s>", "<|end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=alphabet)
    )
    bpe.add_special_tokens([AddedToken(token, special=True) for token in special])
    last = " </s>" if ends else ""
    bpe.post_processor = processors.TemplateProcessing(single=f"<s> $A{last}", special_tokens=[("<s>", 1), ("</s>", 2)])
    names = {"bos_token": "<s>", "pad_token": "<pad>", **({"eos_token": "</s>"} if eos else {})}
    whole = PreTrainedTokenizerFast(tokenizer_object=bpe, **names)
    if template is not None:
        whole.chat_template = template
    whole.save_pretrained(folder)
    return folder


def sentencepiece(folder: Path) -> Path:
    """A unigram model over words that begin with a blank's mark, as SentencePiece makes them; ``<s>`` before a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    unigram = Tokenizer(models.Unigram())
    unigram.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    unigram.decoder = decoders.Metaspace(prepend_scheme="first")
    texts = [text for pair in pairs(60, seed=99) for text in pair] + ["Question: \nAnswer: one", "### Response:\n"] * 9
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="<unk>")
    unigram.train_from_iterator(texts, trainer)
    unigram.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    whole = PreTrainedTokenizerFast(
        tokenizer_object=unigram, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    whole.save_pretrained(folder)
    return folder
