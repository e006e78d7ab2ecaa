"""Made-up questions: the same ones every time, worked answers that can be scored, no test question in training."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from gpart.datamodules import MathDataModule
from gpart.datamodules.mathematics import generated
from gpart.datamodules.mathematics.generated import generate
from gpart.datamodules.mathematics.sources import load_split
from gpart.errors import GPartError
from gpart.lightning_modules.mathematics.answers import exact_match, extract_answer

NAME = "reasoning-gym:gsm_symbolic"


def test_rows_are_the_same_each_time_and_end_in_an_answer() -> None:
    reasoning_gym = pytest.importorskip("reasoning_gym")
    train, test = load_split(NAME, None, "train"), load_split(NAME, None, "test")
    assert train.column_names == test.column_names == ["question", "answer"]
    assert (len(train), 450 < len(test) <= 500) == (4000, True)
    assert not set(train["question"]) & set(test["question"])
    generated._rows.cache_clear()  # made anew, not remembered
    again = generate(NAME, "train")
    assert again["question"][:] == train["question"][:]
    assert all(exact_match(answer, answer) for answer in train["answer"][:300])
    # The answer is reasoning-gym's own, of the row with that number.
    made = reasoning_gym.create_dataset("gsm_symbolic", size=4000, seed=1)
    for number in (0, 17, 3999):
        assert train[number]["question"] == made[number]["question"]
        assert float(str(extract_answer(train[number]["answer"])).replace(",", "")) == float(made[number]["answer"])


def test_what_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GPartError, match=r"'reasoning-gym:sudoku': the tasks with worked answers are .*gsm_symbolic"):
        generate("reasoning-gym:sudoku", "train")
    with pytest.raises(GPartError, match=r"has no split 'validation'; it has \['train', 'test'\]"):
        generate(NAME, "validation")
    with pytest.raises(GPartError, match="has no configurations, got 'main'"):
        load_split(NAME, "main", "train")
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "gpart.datamodules.mathematics.generated.find_spec",
        lambda name: None if name == "reasoning_gym" else real(name),
    )
    with pytest.raises(GPartError, match=r"needs the package reasoning-gym: pip install 'gpart-lightning\[math\]'"):
        generate(NAME, "train")


def test_the_datamodule_trains_and_asks_them(math_folders: Any, tmp_path: Any) -> None:
    pytest.importorskip("reasoning_gym")
    model = math_folders.tokenizer(tmp_path / "model")
    data = MathDataModule(
        str(model), train=NAME, benchmarks=["gsm_symbolic"], train_size=20, test_questions=5, eval_batch_size=5
    )
    data.setup("fit")
    data.setup("test")
    assert len(data.parts["train"]) == 20
    (batch,) = data.test_dataloader()[0]
    assert batch["benchmark"] == ["gsm_symbolic"] * 5
    test = generate(NAME, "test")
    for idx, question, reference in zip(batch["idx"], batch["question"], batch["reference"], strict=True):
        assert test[idx] == {"question": question, "answer": reference}
