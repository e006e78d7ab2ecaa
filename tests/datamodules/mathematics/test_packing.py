"""Packed rows: how examples are put together, and that a model computes for each what it computes for it alone."""

from __future__ import annotations

import pickle
import random
from typing import Any

import pytest
import torch
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from gpart.datamodules.mathematics.loss_batches import labels_of
from gpart.datamodules.mathematics.packing import PackedCollate, Packs, pack
from gpart.errors import GPartError


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    """More only wait for each other in models this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def first_fit_decreasing(lengths: list[int], room: int) -> list[list[int]]:
    """One by one, as in the textbook."""
    rows: list[list[int]] = []
    for at in sorted(range(len(lengths)), key=lambda at: (-lengths[at], at)):
        for row in rows:
            if sum(lengths[other] for other in row) + lengths[at] <= room:
                row.append(at)
                break
        else:
            rows.append([at])
    return rows


@pytest.mark.parametrize(
    ("count", "longest", "room"), [(1, 8, 8), (50, 8, 8), (300, 40, 64), (300, 64, 64), (200, 3, 50)]
)
def test_the_rows_are_those_of_first_fit_decreasing(count: int, longest: int, room: int) -> None:
    rng = random.Random(count)
    lengths = [rng.randint(1, longest) for _ in range(count)]
    rows = pack(lengths, room)
    assert rows == first_fit_decreasing(lengths, room)
    assert sorted(at for row in rows for at in row) == list(range(count))
    assert all(sum(lengths[at] for at in row) <= room for row in rows)


@pytest.mark.parametrize(("lengths", "said"), [([3, 9], "example 1 has 9 tokens.*1 to 8"), ([0], "example 0 has 0")])
def test_what_fits_in_no_row_is_refused(lengths: list[int], said: str) -> None:
    with pytest.raises(GPartError, match=said):
        pack(lengths, 8)


def test_a_batch_of_rows_has_these_values() -> None:
    examples = [
        {"input_ids": [5, 6, 7], "prompt": 1, "idx": 0},
        {"input_ids": [8, 9], "prompt": 1, "idx": 1},
        {"input_ids": [5, 5, 6, 7], "prompt": 3, "idx": 2},
    ]
    packs = Packs(examples, [[0, 1], [2]])
    batch = pickle.loads(pickle.dumps(PackedCollate(pad=0)))([packs[0], packs[1]])
    assert {name: value if isinstance(value, bool) else value.tolist() for name, value in batch.items()} == {
        "use_cache": False,
        "input_ids": [[5, 6, 7, 8, 9], [5, 5, 6, 7, 0]],
        "labels": [[-100, 6, 7, -100, 9], [-100, -100, -100, 7, -100]],
        "position_ids": [[0, 1, 2, 0, 1], [0, 1, 2, 3, 0]],
    }
    assert all(batch[name].dtype == torch.int64 for name in batch if name != "use_cache")


_SIZES = {
    "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 64,
}  # fmt: skip
_MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_SIZES, num_key_value_heads=2)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**_SIZES, num_key_value_heads=2)),
    "gemma": lambda: GemmaForCausalLM(GemmaConfig(**_SIZES, num_key_value_heads=1, head_dim=8)),
}


def network(name: str, attention: str) -> Any:
    torch.manual_seed(0)
    model = _MODELS[name]().eval()
    model.set_attn_implementation(attention)
    for weight in model.parameters():  # at their usual start the tokens hardly act on each other
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.2)
    return model


def conversations(count: int = 9) -> list[dict[str, Any]]:
    rng = random.Random(1)
    made = []
    for idx in range(count):
        length = rng.randint(3, 15)
        made.append({"input_ids": [rng.randint(1, 49) for _ in range(length)], "prompt": rng.randint(1, 2), "idx": idx})
    return made


def loss_sum(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum"
    )


def differences(model: Any, leave_out: str | None = None) -> tuple[float, float, float]:
    """Of the logits, of the summed loss, and of the model's own mean loss times its tokens, relative to one by one."""
    examples = conversations()
    rows = pack([len(one["input_ids"]) for one in examples], room=32)
    assert len(rows) > 1
    assert any(len(row) > 2 for row in rows)
    packs = Packs(examples, rows)
    batch = PackedCollate(pad=0)([packs[at] for at in range(len(packs))])
    assert (batch["input_ids"] == 0).any()  # some row is filled up
    given = {name: value for name, value in batch.items() if name != leave_out}
    with torch.no_grad():
        out = model(**given)
        single = [model(input_ids=torch.tensor([one["input_ids"]])).logits[0] for one in examples]
    worst = 0.0
    for number, row in enumerate(rows):
        start = 0
        for at in row:
            length = len(examples[at]["input_ids"])
            worst = max(worst, float((out.logits[number, start : start + length] - single[at]).abs().max()))
            start += length
    alone = sum(
        float(loss_sum(logits[None], torch.tensor([labels_of(one)])))
        for logits, one in zip(single, examples, strict=True)
    )
    tokens = int((batch["labels"][:, 1:] != -100).sum())
    assert tokens == sum(len(one["input_ids"]) - one["prompt"] for one in examples)
    packed = float(loss_sum(out.logits, batch["labels"]))
    return worst, abs(packed - alone) / alone, abs(float(out.loss) * tokens - alone) / alone


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", _MODELS)
def test_a_packed_row_gives_what_its_examples_give_alone(name: str, attention: str) -> None:
    assert max(differences(network(name, attention))) < 1e-5


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", _MODELS)
@pytest.mark.parametrize("missing", ["position_ids", "use_cache"])
def test_without_positions_or_with_a_cache_it_would_not(name: str, attention: str, missing: str) -> None:
    """The control; the second is why the batch holds ``use_cache``."""
    logits, loss, own = differences(network(name, attention), leave_out=missing)
    assert logits > 1e-2
    assert min(loss, own) > 1e-4


def test_the_gradients_are_those_of_the_examples_alone() -> None:
    examples = conversations()
    packs = Packs(examples, pack([len(one["input_ids"]) for one in examples], room=32))
    batch = PackedCollate(pad=0)([packs[at] for at in range(len(packs))])

    def gradients(rows: list[tuple[dict[str, Any], torch.Tensor]]) -> list[torch.Tensor]:
        model = network("llama", "sdpa").train()
        for given, labels in rows:
            loss_sum(model(**given).logits, labels).backward()
        return [weight.grad for weight in model.parameters()]

    together = gradients([({key: value for key, value in batch.items() if key != "labels"}, batch["labels"])])
    alone = gradients(
        [({"input_ids": torch.tensor([one["input_ids"]])}, torch.tensor([labels_of(one)])) for one in examples]
    )
    for one, two in zip(together, alone, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)
