"""Generation: the tokens that ``generate`` gives for each prompt alone, whatever else is in the batch."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from gpart import GPartConfig, attach, load_adapter
from gpart.serving.api import Settings, make_engine
from gpart.serving.engine import Engine
from gpart.serving.requests import Limits, RequestError

PROMPTS = ["film", "a charming film with no", "great actors and"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from served_models import WORDS, fill
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    root = tmp_path_factory.mktemp("llama")
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", eos_token="end", model_max_length=32)
    tokenizer.save_pretrained(root / "base")
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        bos_token_id=None,
        eos_token_id=WORDS.index("end"),
        initializer_range=0.5,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(root / "base")
    adapter = attach(model, GPartConfig(d=40, target_modules=["q_proj", "v_proj"]))
    for number in range(3):
        fill(adapter, number)
        adapter.save(root / "adapters" / f"u{number}")
    return root


@pytest.fixture
def engine(folders: Path) -> Engine:
    return make_engine(Settings(str(folders / "base"), str(folders / "adapters")))


@cache
def adapted(folders: Path, name: str | None) -> Any:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folders / "base").eval()
    if name is not None:
        load_adapter(model, folders / "adapters" / name)
    return model


@torch.no_grad()
def alone(folders: Path, name: str | None, prompt: str, new: int) -> list[int]:
    from transformers import AutoTokenizer

    model = adapted(folders, name)
    encoded = AutoTokenizer.from_pretrained(folders / "base")(prompt, return_tensors="pt")
    row: list[int] = model.generate(input_ids=encoded["input_ids"], max_new_tokens=new, do_sample=False)[0].tolist()
    return row[encoded["input_ids"].shape[1] :]


def test_batches_give_what_each_prompt_gives_alone(engine: Engine, folders: Path) -> None:
    asked = [(name, prompt) for name in (None, "u0", "u1", "u2") for prompt in PROMPTS]
    answers = engine.answer(
        [engine.read({"prompt": prompt, "adapter": name, "max_new_tokens": 9}) for name, prompt in asked]
    )
    reasons = set()
    for (name, prompt), answer in zip(asked, answers, strict=True):
        assert not isinstance(answer, RequestError), answer
        tokens = alone(folders, name, prompt, 9)
        end = engine.switch.model.config.eos_token_id  # type: ignore[union-attr]
        kept = tokens[: tokens.index(end)] if end in tokens else tokens
        assert answer["text"] == engine.task.tokenizer.decode(kept, skip_special_tokens=True)  # type: ignore[attr-defined]
        assert answer["tokens"] == len(kept)
        assert answer["finish_reason"] == ("stop" if end in tokens else "length")
        reasons.add(answer["finish_reason"])
    assert len({answer["text"] for answer in answers if not isinstance(answer, RequestError)}) > 4
    assert "length" in reasons


def test_settings_that_differ_run_apart(engine: Engine) -> None:
    short, long = engine.answer([engine.read({"prompt": "film", "max_new_tokens": count}) for count in (1, 5)])
    assert not isinstance(short, RequestError)
    assert not isinstance(long, RequestError)
    assert short["tokens"] <= 1 < long["tokens"]


def test_a_temperature_draws(engine: Engine) -> None:
    read = engine.read({"prompt": "film", "max_new_tokens": 12, "temperature": 5.0})
    texts = set()
    for _ in range(5):
        (answer,) = engine.answer([read])
        assert not isinstance(answer, RequestError), answer
        texts.add(answer["text"])
    assert len(texts) > 1


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"text": "film"}, "unknown fields: 'text'"),
        ({"prompt": "film", "max_new_tokens": 21}, "'max_new_tokens' must be a whole number from 1 to 20, got 21"),
        ({"prompt": "film " * 13}, "the text has 13 tokens and 20 new ones; the server takes 1 to 32 in all"),
        ({"prompt": "film", "temperature": -1}, "'temperature' must be a number from 0.0 to 10.0, got -1"),
        ({"prompt": "film", "temperature": float("nan")}, "got nan"),
        ({"prompt": "film", "top_p": 0}, "'top_p' must be a number from 0.01 to 1.0, got 0"),
        ({"prompt": " "}, "the text has 0 tokens"),
    ],
)
def test_what_a_prompt_may_not_hold(folders: Path, body: dict[str, Any], reason: str) -> None:
    limits = Limits(new_tokens=20)
    read = make_engine(Settings(str(folders / "base"), str(folders / "adapters"), limits=limits)).read(body)
    assert isinstance(read, RequestError)
    assert (read.status, reason in read.detail) == (422, True), read.detail


def test_scores_of_several_kinds() -> None:
    from types import SimpleNamespace

    from gpart.serving.texts import scores

    config = SimpleNamespace(num_labels=3, problem_type="multi_label_classification", id2label=dict(enumerate("abc")))
    answer = scores(torch.tensor([0.0, 20.0, -20.0]), config, 2)
    assert [each["label"] for each in answer["top"]] == ["b", "a"]
    assert answer["top"][1]["score"] == pytest.approx(0.5)
    assert scores(torch.tensor([2.5]), SimpleNamespace(num_labels=1, problem_type=None), 5) == {"score": 2.5}
    two = SimpleNamespace(num_labels=2, problem_type="regression", id2label={0: "no", 1: "yes"})
    assert scores(torch.tensor([2.5, 1.0]), two, 5) == {"scores": [2.5, 1.0]}


def test_an_adapters_own_labels_and_task_go_before_the_bases() -> None:
    from types import SimpleNamespace

    from gpart.serialization.about import About
    from gpart.serving.texts import scores

    config, logits = SimpleNamespace(num_labels=2, problem_type=None, id2label={0: "no", 1: "yes"}), torch.zeros(2)

    def top(about: About | None) -> list[tuple[str, float]]:
        return [(each["label"], each["score"]) for each in scores(logits, config, 2, about)["top"]]

    assert top(None) == top(About(task="text-generation")) == [("no", 0.5), ("yes", 0.5)]
    assert top(About(labels=["bad", "good"])) == [("bad", 0.5), ("good", 0.5)]
    assert top(About(labels=["of", "another", "head"])) == [("no", 0.5), ("yes", 0.5)]
    logits = torch.tensor([0.0, 20.0])
    assert top(About(task="multi-label"))[1] == ("no", 0.5)
    assert scores(logits, config, 2, About(task="regression")) == {"scores": [0.0, 20.0]}
    config.problem_type = "multi_label_classification"
    assert top(About(task="classification"))[1][1] < 1e-6
