"""Answers by vLLM, of which a package with its interface takes the place: the same outputs as by Transformers."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from gpart import GPartConfig, attach
from gpart.callbacks import BitFit, FullFineTuning, GPartCallback, PeftCallback
from gpart.errors import GPartError
from gpart.lightning_modules import CausalLM
from gpart.lightning_modules.mathematics import vllm_engine
from gpart.lightning_modules.mathematics.vllm_engine import Answered, Method, batches_of

STUBS = Path(__file__).parents[2] / "helpers" / "stubs"
PROMPTS = [["one two", "three", "four five six seven eight"], ["two two two one", "nine"]]
TARGETS = {"llama": ["q_proj", "v_proj"], "gpt2": ["c_attn"]}


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The package in vLLM's place; temporary folders are made in ``tmp_path/temporary``."""
    monkeypatch.syspath_prepend(str(STUBS))
    monkeypatch.delitem(sys.modules, "vllm", raising=False)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    import vllm as stub

    yield stub
    sys.modules.pop("vllm", None)


def quiet(folder: Path, *callbacks: Callback, **more: Any) -> Trainer:
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "default_root_dir": folder,
        "callbacks": list(callbacks),
    }
    return Trainer(**{**settings, **more})


def questions(folder: Path, benchmark: str, texts: list[str], first: int, reference: str = "#### 4") -> dict[str, Any]:
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    encoded = tokenizer(texts, return_tensors="pt", padding=True)
    return {
        "input_ids": encoded["input_ids"],
        "attention_mask": encoded["attention_mask"],
        "idx": list(range(first, first + len(texts))),
        "question": texts,
        "reference": [reference] * len(texts),
        "benchmark": [benchmark] * len(texts),
        "place": [f"{benchmark}.jsonl"] * len(texts),
        "repeated": [False] * len(texts),
    }


def loaders(folder: Path, **more: Any) -> list[DataLoader[Any]]:
    """Two benchmarks: one of two batches, one of one, that asks a question of the first again."""
    of = [questions(folder, "gsm8k", texts, 10 * at, **more) for at, texts in enumerate(PROMPTS)]
    last = questions(folder, "math", ["three", "seven one"], 5, **more)
    return [DataLoader(of, batch_size=None), DataLoader([last], batch_size=None)]


def taught(folder: Path, work: Path, *callbacks: Callback, **trainer: Any) -> CausalLM:
    """A model that a few steps have changed so much that it says something else; without callbacks, as it is."""
    module = CausalLM(str(folder), lr=0.1, warmup_ratio=0, max_new_tokens=9, verify=False, engine="vllm")
    ids = torch.randint(5, 40, (4, 9), generator=torch.Generator().manual_seed(3))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    if callbacks:
        quiet(work, *callbacks, max_steps=6, **trainer).fit(module, DataLoader([batch] * 6, batch_size=None))
    return module


def scored(module: CausalLM, engine: str, work: Path, *callbacks: Callback, **trainer: Any) -> Any:
    """The scores and the lines of the outputs' files."""
    module.hparams["engine"] = engine
    trainer = quiet(work / engine, *callbacks, **trainer)
    found = trainer.test(module, loaders(Path(module.hparams["model"])), verbose=False)
    scores = {name: value for one in found for name, value in one.items() if "per_second" not in name}
    paths = sorted((work / engine / "generations").iterdir())
    assert [path.name for path in paths] == ["test-gsm8k.jsonl", "test-math.jsonl"]
    return scores, [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def peft(kind: str, name: str, **settings: Any) -> PeftCallback:
    return PeftCallback(name, TARGETS[kind], settings=settings)


METHODS: dict[str, Any] = {
    "none": lambda kind: [],
    "gpart": lambda kind: [GPartCallback(d=50, target_modules=TARGETS[kind], dropout=0.1)],
    "two adapters": lambda kind: [
        GPartCallback(d=50, target_modules=TARGETS[kind], seed=at, name=name) for at, name in enumerate("ab")
    ],
    "full": lambda kind: [FullFineTuning()],
    "lora": lambda kind: [peft(kind, "LORA", r=4, init_lora_weights=False)],
    "dora": lambda kind: [peft(kind, "LORA", r=4, use_dora=True, init_lora_weights=False)],
    "vera": lambda kind: [peft(kind, "VERA", r=8, d_initial=1.0, init_weights=False)],
    "uni-lora": lambda kind: [peft(kind, "UNILORA", r=4, theta_d_length=64)],
}


@pytest.fixture(scope="session")
def folders(tiny_causal: Any, math_folders: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A GPT-2 with a tokenizer of words, and a Llama with one of bytes, which can look for stop strings."""
    tokenizer = math_folders.tokenizer(tmp_path_factory.mktemp("bytes") / "llama")
    return {"llama": tiny_causal.with_tokenizer(tokenizer), "gpt2": tiny_causal("gpt2")}


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("method", METHODS)
def test_the_outputs_are_those_of_transformers(
    method: str, kind: str, folders: dict[str, Path], vllm: Any, tmp_path: Path, state_of: Any
) -> None:
    if (method, kind) == ("vera", "gpt2"):
        pytest.skip("PEFT's VeRA takes no Conv1D")
    callbacks = METHODS[method](kind)
    module = taught(folders[kind], tmp_path, *callbacks)
    wanted = scored(module, "transformers", tmp_path, *callbacks)
    before = state_of(module)
    assert scored(module, "vllm", tmp_path, *callbacks) == wanted
    before.assert_kept()
    assert len({row["output"] for row in wanted[1]}) > 1
    if callbacks:  # it is not the base model that was asked
        assert scored(taught(folders[kind], tmp_path), "transformers", tmp_path / "base")[1] != wanted[1]
    assert list((tmp_path / "temporary").iterdir()) == []
    assert not vllm.LLM.alive
