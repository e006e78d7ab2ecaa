"""The memory settings: what is stored, kept or computed again changes no number; what is kept is never stale."""

from __future__ import annotations

import copy
import itertools
import threading
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model

import gpart.materialize.policy
import gpart.materialize.recompute
from gpart import GPartConfig, attach, load_adapter
from gpart.config import INDICES, WEIGHTS, MemoryPolicy
from gpart.materialize.policy import mode_of, stores_indices
from gpart.ops.block import ComputedIndices
from gpart.partition import chunk_size

SETTINGS = list(itertools.product(INDICES, WEIGHTS))
TEXTS = torch.arange(12).view(2, 6)


def bert(checkpointing=False):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1,
    )  # fmt: skip
    model = BertModel(config)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model, "all-linear"


def gpt2():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=20, n_positions=8, n_embd=16, n_layer=2, n_head=2)
    model = GPT2Model(config)
    return model, ["c_attn", "c_proj", "wte"]


class Mixed(nn.Module):
    """Attention that reads its weights several times, a convolution, a layer run twice, an output in place."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(20, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.conv = nn.Conv1d(8, 8, 3, padding=1)
        self.layer = nn.Linear(8, 8)

    def forward(self, ids):
        x = self.embed(ids)
        x = x + self.attention(x, x, x)[0]
        x = self.conv(x.transpose(1, 2)).transpose(1, 2)
        return self.layer(self.layer(x).relu_())


def mixed():
    return Mixed(), ["embed", "attention", "out_proj", "conv", "layer"]


MODELS = {"bert": bert, "checkpointed bert": lambda: bert(checkpointing=True), "gpt2": gpt2, "mixed": mixed}


def trained(make, indices, weights, dropout, slices=None, micro_batches=2, steps=3):
    """Losses, theta, theta's last gradient and an evaluation after some accumulated steps."""
    model, targets = make()
    config = GPartConfig(d=13, target_modules=targets, dropout=dropout, slices=slices)
    adapter = attach(model, config, indices=indices, weights=weights)
    with torch.no_grad():
        adapter.theta.copy_(torch.linspace(-1, 1, 13))
    optimizer = torch.optim.AdamW([adapter.theta], lr=0.05)
    losses = []
    model.train()
    torch.manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        for ids in TEXTS.split(2 // micro_batches):
            output = model(ids)
            loss = getattr(output, "last_hidden_state", output).square().mean()
            loss.backward()
            losses.append(loss.detach())
        optimizer.step()
    with torch.no_grad():
        output = model.eval()(TEXTS)
    return [*losses, adapter.theta.detach(), adapter.theta.grad, getattr(output, "last_hidden_state", output)]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("name", MODELS)
def test_no_setting_changes_a_bit(name, dropout):
    wanted = trained(MODELS[name], "stored", "forward", dropout)
    assert wanted[-2].norm() > 0
    for indices, weights in SETTINGS:
        found = trained(MODELS[name], indices, weights, dropout)
        assert all(one.equal(other) for one, other in zip(found, wanted, strict=True)), (indices, weights)


@pytest.mark.parametrize("name", MODELS)
def test_no_setting_changes_a_bit_under_autocast(name):
    with torch.autocast("cpu", torch.bfloat16):
        wanted = trained(MODELS[name], "stored", "forward", 0.3)
        for indices, weights in SETTINGS:
            found = trained(MODELS[name], indices, weights, 0.3)
            assert all(one.equal(other) for one, other in zip(found, wanted, strict=True)), (indices, weights)


@pytest.mark.parametrize(("d", "dtype"), [(1 << 15, torch.int16), ((1 << 15) + 1, torch.int32)])
@pytest.mark.parametrize("threads", [1, 2])
def test_stored_group_numbers_are_as_narrow_as_they_can_be(d, dtype, threads, monkeypatch):
    """The last group's number is the largest that fits; with one thread the pass reads by another operation."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    found = []
    for indices in ("stored", "computed"):
        model = nn.Sequential(nn.Linear(200, 201, bias=False))
        nn.init.zeros_(model[0].weight)
        adapter = attach(model, GPartConfig(d=d, target_modules=["0"], isometric=False), indices=indices)
        with torch.no_grad():
            adapter.theta.copy_(torch.arange(d))
        weight = model[0].weight
        (weight * torch.arange(1.0, 202)[:, None]).sum().backward()
        found.append((weight.detach(), adapter.theta.grad, adapter.delta("0.weight")))
        parts = adapter.weights.blocks(adapter.plan.weights[0], torch.device("cpu"))
        assert parts[0].indices[:].dtype == (dtype if indices == "stored" else torch.int32)
    assert found[0][0].max() == d - 1
    for one, other in zip(*found, strict=True):
        assert one.equal(other)


@pytest.mark.parametrize("dim", [0, 1])
def test_no_setting_changes_a_bit_where_a_weight_is_cut_into_blocks(dim):
    make, slices = (bert, {"query": [[0, 4], [8, 12]]}) if dim == 0 else (gpt2, {"c_attn": [[0, 16], [32, 48]]})
    wanted = trained(make, "stored", "forward", 0.3, slices)
    for indices, weights in SETTINGS:
        found = trained(make, indices, weights, 0.3, slices)
        assert all(one.equal(other) for one, other in zip(found, wanted, strict=True)), (indices, weights)


def test_weights_of_several_chunks_are_the_same_stored_and_computed(monkeypatch):
    monkeypatch.setattr("gpart.ops.reference.stretch_size", lambda device: 128)
    monkeypatch.setattr("gpart.ops.dispatch.stretch_size", lambda device: 128)
    monkeypatch.setattr("gpart.ops.dispatch._SMALL", 0)
    monkeypatch.setattr("gpart.ops.sums.stretch_size", lambda device: 128)
    monkeypatch.setattr("gpart.ops.dropout.chunk_size", lambda device: 64)
    wanted = trained(bert, "stored", "forward", 0.3)
    assert chunk_size("cpu") > 16 * 24
    for indices, weights in (("computed", "recomputed"), ("computed", "kept"), ("stored", "recomputed")):
        found = trained(bert, indices, weights, 0.3)
        assert all(one.equal(other) for one, other in zip(found, wanted, strict=True)), (indices, weights)


# --- how often ---


@pytest.mark.parametrize(
    ("weights", "dropout", "count"),
    [("kept", 0.0, 1), ("forward", 0.0, 4), ("recomputed", 0.0, 8), ("kept", 0.3, 4), ("forward", 0.3, 4)],
)
def test_a_weight_is_computed_as_often_as_the_setting_says(weights, dropout, count, evaluations):
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
    attach(model, GPartConfig(d=5, target_modules=["0", "2"], dropout=dropout), weights=weights)
    for _ in range(4):  # micro-batches of one step
        model(torch.ones(1, 4, requires_grad=True)).sum().backward()
    assert evaluations.count((6, 4)) == evaluations.count((2, 6)) == count


def test_a_kept_weight_is_computed_once_per_step_and_once_per_evaluation(evaluations):
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
    adapter = attach(model, GPartConfig(d=5, target_modules=["0", "2"]), weights="kept")
    optimizer = torch.optim.SGD([adapter.theta], lr=0.1)
    for step in range(3):
        for _ in range(2):
            model(torch.ones(1, 4)).sum().backward()
        assert len(evaluations) == 2 * (step + 1)
        optimizer.step()
    with torch.no_grad():
        for _ in range(3):
            model.eval()(torch.ones(1, 4))
    assert len(evaluations) == 8


# --- what is kept is not stale, and its memory is nobody else's ---


def through_data(tensor):
    tensor.data.add_(1)


def in_place(tensor):
    with torch.no_grad():
        tensor.add_(1)


def one_number(tensor):
    tensor.data.view(-1)[-1] += 1


@pytest.mark.parametrize("change", [through_data, in_place, one_number])
@pytest.mark.parametrize("grad", [True, False])
def test_a_change_of_theta_is_seen_however_it_is_written(change, grad):
    """Lightning's weight averaging and older optimizers write through ``.data``, which no version counter counts."""
    model = nn.Sequential(nn.Linear(4, 4, bias=False))
    adapter = attach(model, GPartConfig(d=5, target_modules=["0"]), weights="kept")
    with torch.set_grad_enabled(grad):
        before = model(torch.eye(4)).detach().clone()
        change(adapter.theta)
        after = model(torch.eye(4)).detach()
    assert not after.equal(before)
    wanted = (adapter.base_parameters()["0.weight"] + adapter.delta("0.weight")).detach().T
    torch.testing.assert_close(after, wanted)


def test_a_change_of_the_base_is_seen():
    model = nn.Sequential(nn.Linear(4, 4, bias=False))
    adapter = attach(model, GPartConfig(d=5, target_modules=["0"]), weights="kept")
    before = model(torch.eye(4)).detach().clone()
    in_place(adapter.base_parameters()["0.weight"])
    torch.testing.assert_close(model(torch.eye(4)).detach(), before + 1)
    assert model.double()(torch.eye(4).double()).dtype == torch.float64


def test_memory_that_a_pending_backward_pass_needs_is_not_written_again():
    results = []
    for weights in ("forward", "kept"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
        adapter = attach(model, GPartConfig(d=5, target_modules=["0", "2"]), weights=weights)
        pending = []
        for _ in range(3):
            pending.append(model(torch.ones(1, 4)).sum())
            through_data(adapter.theta)
        for loss in pending:
            loss.backward()
        results.append(adapter.theta.grad)
    assert results[0].equal(results[1])


def test_memory_that_the_user_holds_is_not_written_again():
    model = nn.Sequential(nn.Linear(4, 4))
    adapter = attach(model, GPartConfig(d=5, target_modules=["0"]), weights="kept")
    held = [model[0].weight.detach(), model[0].weight.detach().numpy()]
    copies = [torch.as_tensor(value).clone() for value in held]
    for _ in range(3):
        in_place(adapter.theta)
        model(torch.ones(1, 4))
    assert all(torch.as_tensor(value).equal(known) for value, known in zip(held, copies, strict=True))


def test_memory_that_nobody_holds_is_written_again():
    model = nn.Sequential(nn.Linear(4, 4))
    adapter = attach(model, GPartConfig(d=5, target_modules=["0"]), weights="kept")
    places = set()
    for _ in range(4):
        model(torch.ones(1, 4)).sum().backward()
        places.add(adapter.weights.cache.values["0.weight"].tensor.data_ptr())
        in_place(adapter.theta)
    assert len(places) == 1


def test_memory_that_another_thread_has_just_been_given_is_not_written_again():
    """Each thread's pass has a mask of its own. The other one comes between the cache and the layer."""
    results = []
    for weights in ("forward", "kept"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4))
        adapter = attach(model, GPartConfig(d=5, target_modules=["0"], dropout=0.5), weights=weights)
        with torch.no_grad():
            adapter.theta.copy_(torch.linspace(-1, 1, 5))
        model.train()
        real, others = adapter.weights.cache.value, [threading.Thread(target=lambda own=model: own[0].weight)]

        def interrupted(*given, real=real, others=others):
            found = real(*given)
            while others:
                other = others.pop()
                other.start()
                other.join()
            return found

        adapter.weights.cache.value = interrupted
        results.append(model(torch.eye(4)).detach())
        assert bool(others) is (weights == "forward")
    assert results[0].equal(results[1])


def three_layers(weights="kept"):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 6), nn.Linear(6, 7))
    return model, attach(model, GPartConfig(d=5, target_modules=["0", "1", "2"]), weights=weights)


def test_a_kept_weight_is_not_given_where_its_base_has_changed_since():
    model, adapter = three_layers()
    model(torch.ones(1, 4)).sum().backward()
    in_place(adapter.theta)
    assert model[0].weight.shape == (5, 4)
    in_place(adapter.base_parameters()["2.weight"])
    assert model[2].weight.equal(adapter.base_parameters()["2.weight"] + adapter.delta("2.weight"))


def test_memory_that_others_hold_is_left_alone():
    results = []
    for weights in ("forward", "kept"):
        model, adapter = three_layers(weights)
        pending = model(torch.ones(1, 4)).square().sum()
        held = model[2].weight.detach()
        copy_of_held = held.clone()
        in_place(adapter.theta)
        assert model[0].weight.shape == (5, 4)
        assert held.equal(copy_of_held)
        pending.backward()
        results.append(adapter.theta.grad)
    assert results[0].equal(results[1])


def test_a_model_that_was_cast_is_computed_from_its_new_weights():
    model, adapter = three_layers()
    model(torch.ones(1, 4)).sum().backward()
    in_place(adapter.theta)
    model.double()
    assert model[0].weight.dtype == torch.float64
    assert model[2].weight.equal(adapter.base_parameters()["2.weight"] + adapter.delta("2.weight"))


def test_a_write_to_the_weight_that_was_read_does_not_stay():
    """The property gives a fresh W at every read, as torch's parametrizations do."""
    model = nn.Sequential(nn.Linear(4, 4))
    attach(model, GPartConfig(d=5, target_modules=["0"]), weights="kept")
    wanted = model(torch.ones(1, 4)).detach().clone()
    with torch.no_grad():
        model[0].weight.zero_()
    assert model(torch.ones(1, 4)).equal(wanted)


def test_kept_weights_go_from_inference_mode_to_training():
    model = nn.Sequential(nn.Linear(4, 4))
    adapter = attach(model, GPartConfig(d=5, target_modules=["0"]), weights="kept")
    with torch.inference_mode():
        wanted = model(torch.ones(1, 4)).clone()
    output = model(torch.ones(1, 4, requires_grad=True))
    assert output.equal(wanted)
    output.square().sum().backward()
    assert adapter.theta.grad.norm() > 0
    with torch.inference_mode(), adapter.cached():
        assert model(torch.ones(1, 4)).equal(wanted)


def test_free_gives_the_memory_back_and_a_copy_keeps_none(evaluations):
    model = nn.Sequential(nn.Linear(4, 4))
    adapter = attach(model, GPartConfig(d=5, target_modules=["0"]), weights="kept")
    model(torch.ones(1, 4))
    copied = copy.deepcopy(model)
    assert adapter.weights.cache.values
    assert not copied.gpart["default"].adapter.weights.cache.values
    adapter.free()
    assert not adapter.weights.cache.values
    model(torch.ones(1, 4))
    assert len(evaluations) == 2


# --- computed again in the backward pass ---


def remember(adapter, places):
    """Keeps a weak reference to the memory of every weight that a layer reads."""
    read = adapter.weights.read

    def remembered(weight, base, training):
        value = read(weight, base, training)
        places.append(value.untyped_storage()._weak_ref())
        return value

    adapter.weights.read = remembered


@pytest.mark.parametrize("autocast", [False, True])
def test_no_adapted_weight_is_held_for_the_backward_pass_where_it_is_computed_again(autocast, monkeypatch):
    """Told by the storages: each is freed when its layer is left."""
    wide: list[Any] = []
    cast = gpart.materialize.recompute._as_autocast_does

    def remembered(value: torch.Tensor) -> torch.Tensor:
        wide.append(value.untyped_storage()._weak_ref())
        return cast(value)

    monkeypatch.setattr(gpart.materialize.recompute, "_as_autocast_does", remembered)
    found = {}
    for weights in ("forward", "recomputed"):
        alive: list[int] = []
        model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(4)))
        remember(attach(model, GPartConfig(d=5, target_modules=["0", "1", "2", "3"]), weights=weights), alive)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(torch.ones(1, 64, requires_grad=True)).sum()
        found[weights] = [torch.UntypedStorage._expired(place) for place in alive]
        loss.backward()
        for place in alive:
            torch.UntypedStorage._free_weak_ref(place)
        assert model[0].weight.dtype == torch.float32
    # Under autocast and computed by each forward pass, what is held is the copy in half the width, not the weight.
    assert found == {"forward": [autocast] * 4, "recomputed": [True] * 4}
    assert [torch.UntypedStorage._expired(place) for place in wide] == [True] * 4
    for place in wide:
        torch.UntypedStorage._free_weak_ref(place)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_base_that_is_trained_gets_the_same_gradient_in_every_mode(dtype):
    results = []
    for weights in WEIGHTS:
        model = Mixed().to(dtype)  # one layer of it is run twice in a pass
        adapter = attach(model, GPartConfig(d=5, target_modules=mixed()[1]), weights=weights)
        with torch.no_grad():
            adapter.theta.copy_(torch.linspace(-1, 1, 5))
        bases = [model.layer._parameters["weight"], model.conv._parameters["weight"]]
        for base in bases:
            base.requires_grad_(True)
        model(TEXTS).square().sum().backward()
        results.append([adapter.theta.grad, *(base.grad for base in bases)])
    for found in results[1:]:
        assert all(one.equal(other) for one, other in zip(found, results[0], strict=True))


class ReadsTwice(nn.Linear):
    """Looks at its weight without gradient, as layers do that scale by its largest entry, and then uses it."""

    def forward(self, x):
        with torch.no_grad():
            self.weight.abs().amax()
        return nn.functional.linear(x, self.weight, self.bias).square()


class WritesIntoItsWeight(nn.Linear):
    def forward(self, x):
        return nn.functional.linear(x, self.weight.clamp_(-0.1, 0.1), self.bias)


@pytest.mark.parametrize("rows", [8, 16])  # as many as the weight has: what the layer saves is as large as the weight
@pytest.mark.parametrize("kind", [ReadsTwice, WritesIntoItsWeight])
def test_what_a_layer_saves_is_not_taken_for_its_weight(kind, rows):
    """Memory that a value left, and a value that the layer has written to, are not what would be computed again."""
    results = []
    for weights in ("kept", "recomputed"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 16), kind(16, 16), nn.Linear(16, 4), nn.Tanh())
        adapter = attach(model, GPartConfig(d=4, target_modules=["0", "1"]), weights=weights)
        with torch.no_grad():
            adapter.theta.copy_(torch.linspace(-1, 1, 4))
        model(torch.randn(rows, 16, requires_grad=True)).square().sum().backward()
        results.append(adapter.theta.grad)
    assert results[0].equal(results[1])


def test_a_half_width_copy_is_computed_again_too():
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(4)))
    attach(model, GPartConfig(d=5, target_modules=["0", "1", "2", "3"]), weights="recomputed")
    held: dict[bool, int] = {}
    pack = gpart.materialize.recompute._pack
    for hidden in (False, True):  # hidden: a forward of its own, which may do more with its weight than one product
        kinds: list[type] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                gpart.materialize.recompute, "_pack", lambda *a, k=kinds: (k.append(type(made := pack(*a))), made)[1]
            )
            if hidden:
                for layer in model:
                    layer.forward = lambda x, own=layer: nn.functional.linear(x, own.weight * 1.0, own.bias)
            with torch.autocast("cpu", torch.bfloat16):
                model(torch.ones(1, 64)).sum().backward()
        held[hidden] = kinds.count(gpart.materialize.recompute._Again)
    assert held == {False: 3, True: 0}  # the first layer's input needs no gradient, so it saves no weight


def test_a_base_that_was_written_to_before_the_backward_pass_is_told():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    adapter = attach(model, GPartConfig(d=5, target_modules=["0", "2"]), weights="recomputed")
    loss = model(torch.ones(1, 4)).sum()
    in_place(adapter.base_parameters()["2.weight"])
    with pytest.raises(RuntimeError, match=r"\[4, 4\].* modified in place"):
        loss.backward()


@pytest.mark.parametrize("isometric", [True, False])
def test_the_gradient_is_that_of_the_theta_of_the_forward_pass(isometric):
    results = []
    for weights in ("forward", "recomputed"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
        config = GPartConfig(d=5, target_modules=["0", "2"], isometric=isometric)
        adapter = attach(model, config, weights=weights)
        loss = model(torch.ones(1, 4)).sum()
        through_data(adapter.theta)
        loss.backward()
        results.append(adapter.theta.grad)
    assert results[0].equal(results[1])


@pytest.mark.parametrize("weights", ["forward", "recomputed"])
def test_an_activation_that_was_written_to_is_told_as_torch_does(weights):
    """A saved-tensor hook switches torch's own check off."""
    model = nn.Sequential(nn.Linear(4, 4))
    attach(model, GPartConfig(d=5, target_modules=["0"]), weights=weights)
    hidden = torch.ones(1, 4)
    output = model(hidden)
    hidden.add_(1)
    with pytest.raises(RuntimeError, match="modified"):
        output.sum().backward()


def test_checkpointing_by_others_is_left_alone():
    """Within a checkpointed region the layer's own tensors are not held by a hook of ours."""
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh())
    attach(model, GPartConfig(d=5, target_modules=["0"]), weights="recomputed")
    seen = []
    real = gpart.materialize.recompute._pack

    def packed(*given):
        seen.append(given)
        return real(*given)

    gpart.materialize.recompute._pack = packed
    try:
        checkpoint(model, torch.ones(1, 64, requires_grad=True), use_reentrant=False).sum().backward()
        assert not seen
        model(torch.ones(1, 64, requires_grad=True)).sum().backward()
        assert seen
    finally:
        gpart.materialize.recompute._pack = real


def test_an_error_in_a_layer_takes_the_hook_off():
    class Fails(nn.Linear):
        def forward(self, x):
            super().forward(x)
            raise ZeroDivisionError

    model = nn.Sequential(Fails(4, 4))
    attach(model, GPartConfig(d=5, target_modules=["0"]), weights="recomputed")
    with pytest.raises(ZeroDivisionError):
        model(torch.ones(1, 4))
    assert torch._C._autograd._top_saved_tensors_default_hooks(True) is None


# --- computed group numbers ---


def test_computed_group_numbers_leave_nothing_stored():
    for indices, stored in (("stored", 2 * 128), ("computed", 0)):
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        adapter = attach(model, GPartConfig(d=5, target_modules=["0", "1"]), indices=indices)
        model(torch.ones(1, 8)).sum().backward()
        assert adapter.weights.index.nbytes == stored


# --- the choice ---


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0)])
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_weight_without_entries_takes_none_of_its_neighbour_s(shape, setting):
    """Both stand at one place of the vector. The C code, from 2^16 entries on, read past the end of no indices."""
    indices, weights = setting
    results = []
    for empty in (False, True):
        torch.manual_seed(0)
        layer = nn.Linear(300, 300)
        model = nn.Sequential(nn.Linear(*shape[::-1], bias=False), layer) if empty else nn.Sequential(layer)
        adapter = attach(model, GPartConfig(d=5, target_modules="all-linear"), indices=indices, weights=weights)
        with torch.no_grad():
            adapter.theta.copy_(torch.linspace(-1, 1, 5))
        if empty:
            assert model[0](torch.ones(2, shape[1])).shape == (2, shape[0])
        layer(torch.ones(2, 300)).square().sum().backward()
        results.append([adapter.theta.grad, layer.weight.detach()])
        adapter.merge()
        results[-1].append(layer._parameters["weight"].detach().clone())
    assert all(one.equal(other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize("projection", ["partition", "hash", "fastfood"])
def test_nothing_is_left_on_a_device_that_the_model_leaves(projection):
    model = nn.Sequential(nn.Linear(64, 64))
    adapter = attach(model, GPartConfig(d=5, target_modules=["0"], projection=projection), indices="stored")
    wanted = model.eval()(torch.ones(1, 64))
    index, scaling = adapter.weights.index, adapter.weights.scaling
    with adapter.cached():
        model(torch.ones(1, 64))
    assert index.nbytes + len(scaling._kept) > 0
    model.to(torch.float64).to(torch.float32)
    assert index.nbytes + len(scaling._kept) > 0  # it stays where the device does
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.to("meta")
    assert (index.nbytes, index.built, scaling._kept) == (0, {}, {})
    model.to_empty(device="cpu").load_state_dict(state)
    assert model(torch.ones(1, 64)).equal(wanted)


def test_auto_goes_by_a_tenth_of_the_memory(monkeypatch):
    monkeypatch.setattr(gpart.materialize.policy, "device_memory", lambda device: 1000.0)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    auto = MemoryPolicy()
    assert [stores_indices(auto, nbytes, cpu) for nbytes in (100, 101)] == [True, False]
    assert [mode_of(auto, nbytes, cpu) for nbytes in (100, 101)] == ["kept", "recomputed"]
    assert [mode_of(auto, nbytes, cuda) for nbytes in (100, 101)] == ["forward", "recomputed"]
    # Two bytes for each of 50 weights are a tenth; for 51 weights they are more, and the numbers are computed.
    for size, kind in ((50, torch.Tensor), (51, ComputedIndices)):
        adapter = attach(nn.Sequential(nn.Linear(size, 1)), GPartConfig(d=5, target_modules=["0"]))
        assert isinstance(adapter.weights.blocks(adapter.plan.weights[0], cpu)[0].indices, kind)
    asked = MemoryPolicy("stored", "kept")
    assert stores_indices(asked, 10**6, cpu)
    assert mode_of(asked, 10**6, cuda) == "kept"


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"indices": "none"}, "'stored', 'computed', got 'none'"), ({"weights": True}, "'recomputed', got True")],
)
def test_an_unknown_setting_is_refused_and_the_model_stays(settings, message, tmp_path):
    model = nn.Sequential(nn.Linear(4, 4))
    attach(model, GPartConfig(d=5, target_modules=["0"])).save(tmp_path / "adapter")
    plain = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(ValueError, match=message):
        attach(plain, GPartConfig(d=5, target_modules=["0"]), **settings)
    with pytest.raises(ValueError, match=message):
        load_adapter(plain, tmp_path / "adapter", **settings)
    assert list(plain.state_dict()) == ["0.weight", "0.bias"]


def two_layers():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    return model, attach(model, GPartConfig(d=5, target_modules=["0", "1"]), weights="kept")


def test_theta_is_compared_once_in_a_forward_pass_and_once_in_an_evaluation(monkeypatch):
    """Not at every weight, which would cost (weights x d)."""
    model, adapter = two_layers()
    compared = []
    real = torch.equal
    monkeypatch.setattr(torch, "equal", lambda *pair: (compared.append(1), real(*pair))[1])
    for wanted in (0, 1, 1):  # the first forward pass has nothing to compare with
        compared.clear()
        model(torch.ones(2, 4))
        assert len(compared) == wanted
    compared.clear()
    with adapter.cached(), torch.no_grad():
        for _ in range(3):
            model(torch.ones(2, 4))
    assert len(compared) == 1


def test_an_evaluation_sees_what_was_written_through_data_before_it():
    model, adapter = two_layers()
    outputs = []
    with torch.no_grad():
        for sign in (1, -1, 1):
            adapter.theta.data.copy_(sign * torch.linspace(-1, 1, 5))
            with adapter.cached():
                outputs += [model(torch.ones(2, 4)) for _ in range(2)]
    assert outputs[0].equal(outputs[1])
    assert not outputs[0].equal(outputs[2])
    assert outputs[0].equal(outputs[4])
