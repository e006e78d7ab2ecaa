"""Rows of several adapters in one batch: each row is what its adapter alone gives it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from gpart import (
    GPartAdapter,
    GPartConfig,
    GPartError,
    attach,
    delete_adapter,
    get_adapters,
    load_adapter,
    rename_adapter,
    set_active,
)


def fill(adapter: GPartAdapter, seed: int) -> GPartAdapter:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        adapter.theta.copy_(torch.randn(adapter.theta.shape, generator=generator))
        for value in adapter.saved_parameters().values():
            value.add_(torch.randn(value.shape, generator=generator))
    return adapter


@pytest.fixture
def bert() -> nn.Module:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, num_labels=3
    )
    model = BertForSequenceClassification(config).eval()
    for number, (name, targets) in enumerate({"a": ["query"], "b": ["query", "value"], "c": ["dense"]}.items()):
        saved = ["classifier"] if name != "b" else None
        config = GPartConfig(
            d=9 + number, target_modules=targets, modules_to_save=saved, exclude_modules=["pooler.dense"]
        )
        fill(attach(model, config, name=name), number)
    return model


@torch.no_grad()
def test_each_row_is_what_its_adapter_gives_it(bert: nn.Module) -> None:
    ids = torch.randint(50, (7, 6), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[2, 3:] = 0
    names = ["b", "a", None, "c", "a", "__base__", "b"]
    adapter = get_adapters(bert)["a"]
    with adapter.batch(names):
        found = bert(input_ids=ids, attention_mask=mask).logits
    for row, name in enumerate(names):
        set_active(bert, [] if name in (None, "__base__") else name)
        alone = bert(input_ids=ids[row : row + 1], attention_mask=mask[row : row + 1]).logits[0]
        torch.testing.assert_close(found[row], alone, rtol=1e-5, atol=1e-5)
    with adapter.cached(), get_adapters(bert)["b"].cached(), adapter.batch(names):
        torch.testing.assert_close(bert(input_ids=ids, attention_mask=mask).logits, found, rtol=0, atol=0)


@torch.no_grad()
def test_one_adapter_for_all_rows_is_that_adapter_to_the_bit(bert: nn.Module) -> None:
    ids = torch.randint(50, (4, 6))
    for name in ("a", "b", []):  # while c is active, with layers and a head that these have not
        set_active(bert, "c")
        with get_adapters(bert)["b"].batch([name or None] * 4):
            found = bert(input_ids=ids).logits
        set_active(bert, name)
        assert torch.equal(found, bert(input_ids=ids).logits), name


@torch.no_grad()
@pytest.mark.parametrize("beams", [1, 2])
def test_generation(beams: int) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        eos_token_id=None,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    for number, name in enumerate("ab"):
        fill(attach(model, GPartConfig(d=50, target_modules=["q_proj", "v_proj"], seed=number), name=name), number)
    ids = torch.randint(1, 40, (3, 5), generator=torch.Generator().manual_seed(2))
    how = {"max_new_tokens": 5, "do_sample": False, "num_beams": beams, "attention_mask": torch.ones_like(ids)}
    with get_adapters(model)["a"].batch(["a", "b", "a"]):
        found = model.generate(ids, **how)
    for row, name in enumerate(["a", "b", "a"]):
        set_active(model, name)
        alone = model.generate(ids[row : row + 1], **{**how, "attention_mask": torch.ones(1, 5, dtype=torch.long)})
        assert torch.equal(found[row], alone[0])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.head = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.one(x)))


def net() -> Net:
    torch.manual_seed(0)
    model = Net()
    for number, name in enumerate("ab"):
        fill(attach(model, GPartConfig(d=3, target_modules=["one"], modules_to_save=["head"]), name=name), number)
        model.train()(torch.randn(8, 4) * 3 + number)
        model.eval()
    return model


@torch.no_grad()
def test_statistics_and_heads_go_with_the_row_and_all_is_as_before() -> None:
    model, x = net(), torch.randn(5, 4)
    names = ["a", "b", None, "b", "a"]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    output, classes = model(x), [type(module) for module in model.modules()]
    with get_adapters(model)["a"].batch(names):
        found = model(x)
    assert torch.equal(model(x), output)
    assert [type(module) for module in model.modules()] == classes
    assert all("forward" not in module.__dict__ for module in model.modules())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    for row, name in enumerate(names):
        set_active(model, [] if name is None else name)
        torch.testing.assert_close(found[row], model(x[row : row + 1])[0], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_a_forward_of_the_instance_s_own_is_called_and_stays() -> None:
    """As accelerate's hooks put it on a layer."""
    model, x, calls = net(), torch.randn(2, 4), []
    plain = model.one.forward
    model.one.forward = lambda x: calls.append(len(x)) or plain(x)
    own = model.one.forward
    with get_adapters(model)["a"].batch(["a", "b"]):
        model(x)
    assert calls == [1, 1]
    assert model.one.forward is own
    model(x)
    assert calls == [1, 1, 2]


@torch.no_grad()
def test_adapters_are_not_changed_while_a_batch_is_open(tmp_path: Path) -> None:
    model, x = net(), torch.randn(2, 4)
    adapter, (ids, before) = get_adapters(model)["a"], ([*model.state_dict()], model(x))
    adapter.save(tmp_path)
    more = GPartConfig(d=3, target_modules=["head"])
    with adapter.batch(["a", "b"]):
        found = model(x)
        for change in (
            lambda: adapter.batch(["b", "b"]).__enter__(),
            lambda: set_active(model, "a"),
            lambda: attach(model, more, name="c"),
            lambda: load_adapter(model, tmp_path, name="c"),
            lambda: load_adapter(model, tmp_path),
            lambda: delete_adapter(model, "b"),
            lambda: rename_adapter(model, "b", "c"),
            adapter.detach,
            get_adapters(model)["b"].merge,
            get_adapters(model)["b"].merge_and_unload,
        ):
            with pytest.raises(GPartError, match=r"a batch of adapters \['a', 'b'\] is open"):
                change()
        with ThreadPoolExecutor(3) as threads:
            assert all(torch.equal(one, found) for one in threads.map(model, [x] * 60))
    assert torch.equal(model(x), before)
    assert [*model.state_dict()] == ids
    set_active(model, "a")


def test_what_is_refused() -> None:
    model = net()
    adapter = get_adapters(model)["a"]
    for names, match in ((["a", "gone"], "no adapter 'gone'"), ([], "got none")):
        with pytest.raises(GPartError, match=match), adapter.batch(names):
            pass
    with adapter.batch(["a", "b", "a"]):
        with pytest.raises(GPartError, match="was given 4 rows, and there are names for 3"):
            model(torch.randn(4, 4))
        with pytest.raises(GPartError, match="read outside the forward of its layer"):
            model.one.weight  # a property
    model(torch.randn(4, 4))
    model.train()
    with pytest.raises(GPartError, match="are for evaluation"), adapter.batch(["a"]):
        pass
    model.eval()
    get_adapters(model)["b"].merge()
    with pytest.raises(GPartError, match=r"merged with adapters \['b'\]"), adapter.batch(["a"]):
        pass
    attention = nn.TransformerEncoderLayer(8, 2).eval()
    mixed = attach(attention, GPartConfig(d=3, target_modules=["self_attn"]))
    with pytest.raises(GPartError, match="takes its batch in ways of its own"), mixed.batch(["default"]):
        pass
    for first in (False, True):  # the sequence's four rows would pass for two beams of two samples
        layers = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, batch_first=first), 1, enable_nested_tensor=False
        ).eval()
        mixed = attach(layers, GPartConfig(d=3, target_modules=["linear1"]))
        if first:
            with mixed.batch(["default", None]):
                continue
        match = r"layers.0.self_attn .* has batch_first=False, so that layers.0.linear1 takes the sequence"
        with pytest.raises(GPartError, match=match), mixed.batch(["default", None]):
            pass
