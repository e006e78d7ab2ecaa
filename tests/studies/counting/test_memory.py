"""The memory plan: what a forward pass keeps, from a model without numbers, against one that runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoConfig, AutoModelForCausalLM

from gpart import GPartConfig, attach
from gpart.cli import main
from gpart.errors import GPartError
from gpart.studies.counting.memory import MemoryPlan, MemorySettings, plan_memory, usual_length

LENGTH = 24


@pytest.fixture
def llama(tiny_causal: Any) -> Path:
    return tiny_causal("llama")


def planned(folder: Path, **more: Any) -> MemoryPlan:
    return plan_memory(
        str(folder), MemorySettings(**{"d": 50, "batch_size": 2, "length": LENGTH, "dtype": "float32", **more})
    )


def test_every_part_is_what_it_should_be(llama: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama)
    layer = 32 * 32 + 2 * 16 * 32 + 32 * 32  # q; k and v of half the heads; o
    found = planned(llama)
    assert found.weights == 4 * sum(value.numel() for value in model.parameters())
    assert found.indices == 2 * 2 * layer
    assert found.adapted == 4 * 2 * layer
    assert found.masks == 0
    assert found.gradient == 4 * 32 * 32
    assert found.trained == 16 * 50  # theta, its gradient, two moments
    assert found.total == sum(vars(found).values())
    half = planned(llama, dtype="bfloat16", dropout=0.1, target_modules=["q_proj"])
    assert half.weights == found.weights // 2
    assert half.adapted == 2 * 2 * 32 * 32
    assert half.masks == 2 * 32 * 32
    assert half.trained == 16 * 50  # float32 whatever the model is


def test_what_is_computed_again_is_not_kept(llama: Path) -> None:
    usual, least = planned(llama, dropout=0.1), planned(llama, dropout=0.1, indices="computed", weights="recomputed")
    assert (least.indices, least.masks, least.adapted) == (0, 0, 4 * 32 * 32)
    assert min(usual.indices, usual.masks, usual.adapted) > 3 * 32 * 32
    assert planned(llama, dropout=0.1, weights="kept") == usual


def test_activations_are_those_of_a_model_that_runs(llama: Path) -> None:
    """Counted by the addresses of real memory; Transformers' own attention keeps the same, but for its statistics."""
    model = AutoModelForCausalLM.from_pretrained(llama, attn_implementation="sdpa").train()
    adapter = attach(model, GPartConfig(d=50, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]))
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    weights = {value.untyped_storage().data_ptr() for value in [*model.parameters(), *model.buffers()]}
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(input_ids=torch.zeros(2, LENGTH, dtype=torch.long), use_cache=False).logits
        rows = logits[:, :-1].reshape(-1, logits.shape[-1])
        nn.functional.cross_entropy(rows, torch.zeros(len(rows), dtype=torch.long), reduction="sum")
    shapes = {tuple(weight.shape) for weight in adapter.plan.weights}
    real = sum(
        value.untyped_storage().nbytes()
        for place, value in kept.items()
        if place not in weights and tuple(value.shape) not in shapes | {shape[::-1] for shape in shapes}
    )
    assert abs(planned(llama).activations - real) < 0.1 * real


def test_activations_grow_with_the_batch_and_shrink_by_checkpointing(llama: Path) -> None:
    one, two = planned(llama, batch_size=1), planned(llama)
    assert 1.9 * one.activations < two.activations < 2.1 * one.activations
    less = planned(llama, gradient_checkpointing=True)
    assert less.activations < 0.7 * two.activations
    assert less.weights == two.weights
    longer = planned(llama, length=2 * LENGTH)
    assert longer.activations < 2.1 * two.activations  # no matrix of length x length is kept


def test_a_classifier_has_its_head_in_it(tiny_encoder: Path) -> None:
    found = planned(tiny_encoder)
    config = AutoConfig.from_pretrained(tiny_encoder)
    head = config.hidden_size**2 + config.hidden_size + config.hidden_size * 2 + 2
    assert found.trained == 16 * 50 + 12 * head  # the head's own numbers are among the weights


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-7B", "google/gemma-7b", "meta-llama/Llama-3.1-8B"])
def test_the_papers_large_models_are_planned_without_a_download(name: str) -> None:
    found = plan_memory(name, MemorySettings(d=524_288, length=512))
    assert found.weights > 14e9
    assert found.trained == 16 * 524_288
    assert found.activations > 1e9


def test_the_command_prints_the_plan(llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--d", "50", "--lora-r", "2", "--vera-r", "2", "--fourierft-n", "9", "--memory", "--dropout", "0.05"]
    assert main(["params", str(llama), *small]) == 0
    shown = capsys.readouterr().out
    for words in ("weights of the model", "group indices", "dropout masks", "in all", "length 256"):
        assert words in shown
    least = ["--indices", "computed", "--weights", "recomputed"]
    assert main(["params", str(llama), *small, *least, "--json"]) == 0
    memory = json.loads(capsys.readouterr().out)["memory"]
    assert memory["masks"] == 0
    assert memory["length"] == 256  # all that the model has positions for
    assert (memory["indices"], memory["adapted"]) == (0, 4 * 32 * 32 // 2)


@pytest.mark.parametrize(("name", "length"), [("roberta-base", 512), ("openai-community/gpt2", 1024)])
def test_a_model_with_few_positions_is_planned_for_these(
    name: str, length: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert usual_length(name) == length
    plan_memory(name, MemorySettings(d=50, length=length))
    with pytest.raises(GPartError, match=f"length={length + 1} is more than the {length} positions of {name}"):
        plan_memory(name, MemorySettings(d=50, length=length + 1))
    assert main(["params", name, "--memory"]) == 0
    assert f"length {length} (the model has no more positions)" in " ".join(capsys.readouterr().out.split())
    assert main(["params", name, "--memory", "--length", "64", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["memory"]["length"] == 64


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "int8"}, "dtype must be one of .*'int8'"),
        ({"indices": "auto"}, "cannot be planned as 'auto'"),
        ({"weights": "none"}, "weights must be one of .*'none'"),
        ({"length": 0}, "length must be a whole number, 1 or more, got 0"),
        ({"task": "image-classification"}, "memory is planned for causal-lm and sequence-classification"),
    ],
)
def test_what_cannot_be_planned_is_refused(llama: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        planned(llama, **settings)
