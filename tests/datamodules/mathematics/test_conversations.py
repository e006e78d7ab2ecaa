"""Prompt and answer are tokenised as one text, by every kind of tokenizer and template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from gpart.datamodules import MathDataModule
from gpart.datamodules.mathematics.conversations import Conversations
from gpart.errors import GPartError

ASKED, TOLD = "What is 1 plus 2?", "1 + 2 = 3.\nThe answer is: 3"
# A template, the text that generation starts from, and the text between it and the answer.
PROMPTS = {
    "Question: {question}\nAnswer:": ("Question: What is 1 plus 2?\nAnswer:", " "),
    "Question: {question}\nAnswer: ": ("Question: What is 1 plus 2?\nAnswer:", " "),
    "{question}": ("What is 1 plus 2?", " "),
    "{question}  ": ("What is 1 plus 2?", "  "),
    "{question}\n### Response:\n": ("What is 1 plus 2?\n### Response:\n", ""),
}


@pytest.fixture(scope="module", params=["byte-level BPE", "SentencePiece"])
def model(request: pytest.FixtureRequest, math_folders: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("tokenizer")
    return str(
        math_folders.tokenizer(place) if request.param == "byte-level BPE" else math_folders.sentencepiece(place)
    )


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_tokens_are_those_of_the_whole_text(model: str, prompt: str) -> None:
    own, (start, between) = Conversations(model, prompt), PROMPTS[prompt]
    [(ids, border, _)], [asked] = own.examples([ASKED], [TOLD]), own.prompts([ASKED])
    assert ids == [*own.tokenizer(start + between + TOLD)["input_ids"], 2]
    assert asked == own.tokenizer(start)["input_ids"]
    assert (ids[:border], ids.count(1), asked.count(1)) == (asked, 1, 1)


def test_a_blank_apart_would_be_other_tokens(model: str) -> None:
    """That there is something to lose, in the tokenizers of this test."""
    own = Conversations(model, "{question} ")
    apart = own.tokenizer(f"{ASKED} ")["input_ids"] + own.tokenizer(TOLD, add_special_tokens=False)["input_ids"]
    assert own.examples([ASKED], [TOLD])[0][0] != [*apart, 2]


def test_blanks_of_the_data_give_no_lone_blank(model: str) -> None:
    own = Conversations(model, "{question}")
    assert own.examples([f"{ASKED} "], [f"  {TOLD}"]) == own.examples([ASKED], [TOLD])
    assert own.prompts([f"{ASKED} "]) == own.prompts([ASKED])


@pytest.mark.parametrize("only", [True, False])
def test_the_targets_of_the_loss(model: str, only: bool) -> None:
    own = Conversations(model, "{question}", completion_only_loss=only)
    rows, report = own.encode(Dataset.from_dict({"query": [ASKED], "response": [TOLD]}), "here", 400)
    [(ids, border, _)] = own.examples([ASKED], [TOLD])
    assert (rows[0]["input_ids"], rows[0]["prompt"]) == (ids, border if only else 1)
    assert border > 1
    assert report.merged == 0


def test_a_token_across_the_border_is_learnt_and_said(math_folders: Any, tmp_path: Path) -> None:
    """The template ends in the first half of a word: training must not pretend that its token is in the prompt."""
    own = Conversations(str(math_folders.tokenizer(tmp_path)), "{question}\nThe ans\n")
    own.prompt = own.prompt.rstrip("\n")
    own._wholes = lambda starts, asked, told: [f"{one}\nThe answer is: 3" for one in asked]  # type: ignore[method-assign]
    [(ids, border, _)], [asked] = own.examples([ASKED], ["wer is: 3"]), own.prompts([ASKED])
    assert own.tokenizer.decode(ids) == f"<s>{ASKED}\nThe answer is: 3</s>"
    assert 0 < border < len(asked)
    assert ids[:border] == asked[:border]
    assert own.tokenizer.decode(ids[border:]).startswith(" answer")
    _, report = own.encode(Dataset.from_dict({"query": [ASKED], "response": ["wer is: 3"]}), "here", 400)
    assert report.merged == 1
    assert str(report).endswith("in 1 a token joins the prompt's end to the answer")


def test_validation_asks_training_questions_of_a_benchmark(math_folders: Any, tmp_path: Path) -> None:
    own = MathDataModule(
        str(math_folders.tokenizer(tmp_path / "model")),
        str(math_folders.metamath(tmp_path / "metamath")),
        benchmarks=["gsm8k"],
        gsm8k=str(math_folders.gsm8k(tmp_path / "gsm8k")),
        held_out=0.1,
        val_questions=5,
        val_questions_of="gsm8k",
    )
    own.setup("fit")
    batch = next(iter(own.val_dataloader()[1]))
    assert batch["benchmark"] == ["gsm8k_train"] * 5
    train = [asked for asked, _ in math_folders.pairs(30, seed=1)]  # the first split of the folder
    assert [train[idx] for idx in batch["idx"]] == batch["question"]
    own.setup("test")
    assert len(own.questions["gsm8k"]) == 13  # the test set's are not these
    own.hparams["gsm8k"] = str(tmp_path / "test.jsonl")
    (tmp_path / "test.jsonl").write_text('{"question": "1?", "answer": "#### 1"}\n')
    with pytest.raises(
        GPartError, match=r"val_questions_of='gsm8k' asks its training split, and .*test.jsonl' is a file"
    ):
        own.prepare_data()
