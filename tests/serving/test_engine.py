"""Every request of a batch gets its own answer, equal to that of its adapter alone, or its own refusal."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from served_models import TEXT, bert_adapters, bert_folder, spoil

from gpart import attach, load_adapter
from gpart.errors import GPartError
from gpart.serving.api import Settings, make_engine
from gpart.serving.engine import Engine
from gpart.serving.requests import Limits, RequestError

TEXTS = ["a charming film", "dull plot", "no end and great actors with a charming plot", "film"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``base`` and ``adapters``, of which one is broken and one is of another base."""
    root = tmp_path_factory.mktemp("bert")
    bert_folder(root / "base")
    bert_adapters(root / "base", root / "adapters", ["u0", "u1", "u2", "broken"])
    spoil(root / "adapters" / "broken")
    from transformers import AutoModelForSequenceClassification

    other = AutoModelForSequenceClassification.from_pretrained(root / "base")
    with torch.no_grad():
        other.bert.embeddings.word_embeddings.weight.add_(1)
    attach(other, TEXT).save(root / "adapters" / "foreign")
    return root


@pytest.fixture
def engine(bert: Path) -> Engine:
    return make_engine(Settings(str(bert / "base"), str(bert / "adapters")))


@cache
def adapted(bert: Path, name: str | None) -> Any:
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(bert / "base").eval()
    if name is not None:
        load_adapter(model, bert / "adapters" / name)
    return model


@torch.no_grad()
def alone(bert: Path, name: str | None, text: str) -> list[float]:
    """The probabilities of an adapter that is loaded alone, for one text alone, by label."""
    from transformers import AutoTokenizer

    model = adapted(bert, name)
    encoded = AutoTokenizer.from_pretrained(bert / "base")(text, return_tensors="pt")
    return model(**encoded).logits[0].softmax(-1).tolist()


def by_label(answer: Any) -> list[float]:
    assert not isinstance(answer, RequestError), answer
    found = {each["label"]: each["score"] for each in answer["top"]}
    assert (answer["label"], answer["score"]) == max(found.items(), key=lambda item: item[1])
    return [found[f"LABEL_{i}"] for i in range(len(found))]


def test_each_answer_has_the_names_of_its_adapters_labels(bert: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    for name, labels in (("film", ["bad", "fair", "good"]), ("mail", ["ham", "mail", "spam"])):
        model = AutoModelForSequenceClassification.from_pretrained(bert / "base")
        adapter = attach(model, TEXT)
        adapter.about = replace(adapter.about, labels=labels)
        adapter.save(tmp_path / name)
    engine = make_engine(Settings(str(bert / "base"), str(tmp_path)))
    asked = [engine.read({"text": "film", "adapter": name}) for name in ("film", "mail", "film", None)]
    found = [sorted(each["label"] for each in answer["top"]) for answer in engine.answer(asked)]  # type: ignore[index]
    film, mail = ["bad", "fair", "good"], ["ham", "mail", "spam"]
    assert found == [film, mail, film, ["LABEL_0", "LABEL_1", "LABEL_2"]]


def test_a_mixed_batch_gives_each_what_its_adapter_gives_alone(engine: Engine, bert: Path) -> None:
    asked = [(name, text) for text in TEXTS for name in ("u1", None, "u0", "u2")]
    read = [engine.read({"text": text, "adapter": name}) for name, text in asked]
    answers = engine.answer(read)
    expected = [alone(bert, name, text) for name, text in asked]
    for answer, values in zip(answers, expected, strict=True):
        assert by_label(answer) == pytest.approx(values, abs=1e-6)
    spread = torch.tensor(expected)
    assert spread.std(0).min() > 0.01  # else any adapter's answer would do


def test_each_adapter_is_switched_to_once_and_the_one_in_use_comes_first(engine: Engine) -> None:
    engine.switch.use("u1")
    used: list[str | None] = []
    real = engine.switch.use
    engine.switch.use = lambda name: used.append(name) or real(name)  # type: ignore[method-assign]
    engine.answer([engine.read({"text": "film", "adapter": name}) for name in ("u0", "u1", None, "u0", "u1")])
    assert used == ["u1", "u0", None]


def test_what_is_wrong_with_one_is_no_other_ones_affair(engine: Engine, bert: Path) -> None:
    bodies: list[Any] = [
        {"text": "film", "adapter": "u0"},
        {"text": "film", "adapter": "broken"},
        {"text": "film", "adapter": "nobody"},
        {"text": "film", "adapter": "../adapters/u0"},
        {"text": 3, "adapter": "u0"},
        {"text": "film", "adapter": "foreign"},
        ["text"],
        {"text": "film", "adapter": "u1"},
    ]
    answers = engine.answer([engine.read(body) for body in bodies])
    status = [answer.status if isinstance(answer, RequestError) else 200 for answer in answers]
    assert status == [200, 500, 404, 422, 422, 500, 422, 200]
    assert by_label(answers[0]) == pytest.approx(alone(bert, "u0", "film"), abs=1e-6)
    assert by_label(answers[-1]) == pytest.approx(alone(bert, "u1", "film"), abs=1e-6)
    said = [answer.detail for answer in answers if isinstance(answer, RequestError)]
    assert "adapter 'broken' is broken: adapter_model.safetensors was changed" in said[0]
    assert "there is no adapter 'nobody'" in said[1]
    assert "trained on another base model" in said[4]
    assert not [detail for detail in said if str(bert) in detail]


def test_an_input_that_fails_fails_alone(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    real = type(engine.task).run
    poison = engine.read({"text": "no no no", "adapter": "u0"})

    def run(task: Any, model: Any, read: Any, about: Any) -> Any:
        if any(inputs is poison.inputs for inputs in read):  # type: ignore[union-attr]
            raise RuntimeError("CUDA error: device-side assert")
        return real(task, model, read, about)

    monkeypatch.setattr(type(engine.task), "run", run)
    good = engine.read({"text": "film", "adapter": "u0"})
    answers = engine.answer([good, poison, good])
    assert isinstance(answers[1], RequestError)
    assert (answers[1].status, "CUDA" in answers[1].detail) == (500, False)
    assert by_label(answers[0]) == by_label(answers[2])


def test_an_empty_batch_has_no_answers(engine: Engine) -> None:
    assert engine.answer([]) == []


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({}, "'text' must be a text of 1 to 30 characters, got nothing"),
        ({"text": ""}, "got 0 characters"),
        ({"text": "f" * 31}, "got 31 characters"),
        ({"text": ["film"]}, "got list"),
        ({"text": "\ud800"}, "no Unicode text"),
        ({"text": "film", "text_pair": 1}, "'text_pair' must be a text"),
        ({"text": "film " * 6}, "the text has 8 tokens; the server takes 1 to 7 in all"),
        ({"text": "film", "text_pair": "a film a film"}, "the text has 8 tokens"),
        ({"text": "film", "top_k": 0}, "'top_k' must be a whole number from 1 to 1000, got 0"),
        ({"text": "film", "top_k": True}, "got True"),
        ({"text": "film", "top_k": 1.5}, "got 1.5"),
        ({"text": "film", "path": "/etc/passwd"}, "unknown fields: 'path'; known are text, text_pair, top_k"),
        ({"text": "film", "adapter": {"name": "u0"}}, "an adapter's name has"),
    ],
)
def test_what_a_text_request_may_not_hold(bert: Path, body: dict[str, Any], reason: str) -> None:
    limits = Limits(tokens=7, characters=30)
    engine = make_engine(Settings(str(bert / "base"), str(bert / "adapters"), limits=limits))
    read = engine.read(body)
    assert isinstance(read, RequestError)
    assert (read.status, reason in read.detail) == (422, True), read.detail


def test_a_text_of_exactly_the_limit_is_read(bert: Path) -> None:
    engine = make_engine(Settings(str(bert / "base"), str(bert / "adapters"), limits=Limits(tokens=7, characters=24)))
    assert not isinstance(engine.read({"text": "film film film film film"}), RequestError)


def test_the_models_positions_are_a_limit_too(engine: Engine) -> None:
    read = engine.read({"text": "film " * 23})
    assert isinstance(read, RequestError)
    assert "has 25 tokens; the server takes 1 to 24 in all" in read.detail


def test_pairs_and_fewer_labels(engine: Engine) -> None:
    first, second = engine.answer(
        [engine.read({"text": "film", "text_pair": "plot", "top_k": 1}), engine.read({"text": "film", "top_k": 1})]
    )
    assert not isinstance(first, RequestError)
    assert not isinstance(second, RequestError)
    assert len(first["top"]) == 1
    assert first["score"] != second["score"]


def test_a_base_without_a_head_takes_the_adapters_and_answers_nothing_itself(bert: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    base = bert_folder(tmp_path / "base", labels=2, head=False)
    attach(AutoModelForSequenceClassification.from_pretrained(base, num_labels=5), TEXT).save(tmp_path / "all" / "five")
    engine = make_engine(Settings(str(base), str(tmp_path / "all"), task="text-classification"))
    answer, refused = engine.answer([engine.read({"text": "film", "adapter": "five"}), engine.read({"text": "film"})])
    assert len(by_label(answer)) == 5
    assert isinstance(refused, RequestError)
    assert (refused.status, "the base has no trained classifier.weight" in refused.detail) == (422, True)


def test_the_number_of_labels_may_be_given(bert: Path, tmp_path: Path) -> None:
    base = bert_folder(tmp_path / "base", head=False)
    settings = Settings(str(base), str(bert / "adapters"), task="text-classification", num_labels=4)
    engine = make_engine(settings)
    assert engine.switch.model.config.num_labels == 4  # type: ignore[union-attr]
    (refused,) = engine.answer([engine.read({"text": "film", "adapter": "u0"})])
    assert isinstance(refused, RequestError)
    assert "classifier" in refused.detail


def test_limits_are_checked() -> None:
    with pytest.raises(GPartError, match="the limit of tokens must be 1 or more, got 0"):
        Limits(tokens=0)
