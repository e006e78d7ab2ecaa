"""A JSON-lines file of one's own questions: from the file to answers of new ones, by the command."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gpart.cli import main

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples" / "data"


@pytest.fixture
def gpart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_causal: Any, math_folders: Any) -> Any:
    """Runs a command of the recipe on a tiny Llama whose tokenizer has every byte, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    model = tiny_causal.with_tokenizer(math_folders.tokenizer(tmp_path / "llama"))
    quiet = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    small = ["--trainer.max_epochs=1", f"--model.model={model}", "--model.max_new_tokens=4", "--method.d=50", *quiet]
    return lambda command, *more: main([command, "--config=questions", *small, *more])


def test_a_bad_row_is_told_before_the_first_step(gpart: Any, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (EXAMPLES / "questions.jsonl").read_text().splitlines()
    lines[41] = json.dumps({**json.loads(lines[41]), "answer": "It is 7, I think."})
    Path("own.jsonl").write_text("\n".join(lines))
    assert gpart("fit", "--data.path=own.jsonl") == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith(
        "gpart: error: own.jsonl, row 42 (line 42): column 'answer' has no final answer after '####'"
    )
    assert "got 'It is 7, I think.'" in said
    assert not list(Path().rglob("*.ckpt"))

    with pytest.warns(UserWarning, match="1 row was left out.*row 42"):
        assert gpart("fit", "--data.path=own.jsonl", "--data.on_bad_row=skip") == 0
    assert Path("adapters/questions/adapter_model.safetensors").is_file()


def test_a_file_trains_is_tested_and_new_questions_are_answered(gpart: Any, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (EXAMPLES / "questions.jsonl").read_text().splitlines(keepends=True)
    Path("own.jsonl").write_text("".join(lines[:50]))
    Path("test.jsonl").write_text("".join(lines[50:]))
    words = ["--data.path=own.jsonl", "--data.test_path=test.jsonl", "--test_best=true"]
    assert gpart("fit", *words) == 0
    table = capsys.readouterr().out.split()
    assert {"test/exact_match", "test/tokens_per_second"} <= set(table)
    (generations,) = Path("runs/questions").rglob("generations/test-test.jsonl")
    rows = [json.loads(line) for line in generations.read_text().splitlines()]
    assert sorted(row["idx"] for row in rows) == list(range(10))
    for row in rows:
        asked = json.loads(lines[50 + row["idx"]])
        assert row["question"] == asked["question"]
        assert asked["answer"].endswith(f"#### {row['gold']}")

    new = [{"id": f"n{at}", "question": f"What is {at} plus 1?"} for at in range(3)]
    Path("new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in new))
    asked = ["--method.adapter=adapters/questions", "--data.path=new.jsonl", "--output=out.jsonl"]
    assert gpart("predict", *asked) == 0
    out = sorted((json.loads(line) for line in Path("out.jsonl").read_text().splitlines()), key=lambda row: row["idx"])
    assert [(row["idx"], row["id"], row["question"]) for row in out] == [
        (at, row["id"], row["question"]) for at, row in enumerate(new)
    ]
    assert all(set(row) == {"idx", "id", "question", "output", "answer"} for row in out)


# The example files


def test_the_example_files_are_what_their_script_makes(tmp_path: Path) -> None:
    made = runpy.run_path(str(EXAMPLES / "make_pictures_and_questions.py"))
    made["make"](tmp_path)
    assert (tmp_path / "questions.jsonl").read_text() == (EXAMPLES / "questions.jsonl").read_text()
    names = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.png"))
    assert names == sorted(path.relative_to(EXAMPLES) for path in EXAMPLES.rglob("*.png"))
    for name in names:  # the files' bytes are the library's affair
        assert np.array_equal(np.asarray(Image.open(tmp_path / name)), np.asarray(Image.open(EXAMPLES / name)))


def test_the_example_answers_are_right() -> None:
    for line in (EXAMPLES / "questions.jsonl").read_text().splitlines():
        answer = json.loads(line)["answer"]
        steps = re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)\.", answer)
        for one, sign, two, result in steps:
            whole = {"+": int(one) + int(two), "-": int(one) - int(two), "*": int(one) * int(two)}
            assert (int(one) / int(two) if sign == "/" else whole[sign]) == int(result)
        assert steps
        assert answer.endswith(f"#### {steps[-1][3]}")
