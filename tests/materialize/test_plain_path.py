"""Where torch follows a model: the values of a plain model, and a training step afterwards that nothing has touched."""

from __future__ import annotations

import io
import itertools

import pytest
import torch
from releases import needs_compiler
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from gpart import GPartConfig, Partition, attach
from gpart.ops.block import has_memory

IDS = torch.arange(12).view(4, 3) % 10
SETTINGS = list(itertools.product(("kept", "forward", "recomputed"), ("stored", "computed")))


class Net(nn.Module):
    """An embedding, a convolution, a layer that is cut into two blocks and runs twice, and a frozen head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(10, 8)
        self.conv = nn.Conv1d(8, 8, 3, padding=1)
        self.layer = nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, ids):
        x = self.conv(self.embed(ids).transpose(1, 2)).tanh().transpose(1, 2)
        return self.head(self.layer(self.layer(x).tanh())).sum(1)


def adapted(weights="auto", indices="auto", warm=False, **options):
    model = Net()
    config = GPartConfig(
        d=7, target_modules=["embed", "conv", "layer"], slices={"layer": [[0, 3], [5, 7]]}, seed=3, **options
    )
    adapter = attach(model, config, weights=weights, indices=indices)
    torch.manual_seed(1)
    with torch.no_grad():
        adapter.theta.normal_()
    if warm:
        train(model, adapter)
    return model, adapter


def train(model, adapter):
    """One step, and one evaluation."""
    model(IDS).square().sum().backward()
    with torch.no_grad():
        adapter.theta.sub_(0.01 * adapter.theta.grad)
    adapter.theta.grad = None
    with torch.no_grad():
        return adapter.theta.clone(), model(IDS)


def reference(adapter):
    """The same function of theta, by a model without an adapter."""
    config, plan, plain = adapter.config, adapter.plan, Net()
    groups = Partition(plan.size, config.d, config.seed).groups().long()
    sizes = torch.bincount(groups, minlength=config.d)

    def run(theta, ids=IDS):
        update, values = (theta / sizes.sqrt())[groups], {}
        for weight in plan.weights:
            pieces, base, end = [], plain.get_parameter(weight.name).detach(), 0
            for start, stop, offset in weight.blocks:
                shape = (stop - start, *base.shape[1:])
                count = base[start:stop].numel()
                pieces += [base[end:start], base[start:stop] + update[offset : offset + count].view(shape)]
                end = stop
            values[weight.name] = torch.cat([*pieces, base[end:]])
        return functional_call(plain, values, (ids,))

    return run


def tensors_in(value, seen):
    """Every tensor that an object of ours holds, however deep."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from tensors_in(one, seen)
    elif isinstance(value, (list, tuple, set)):
        for one in value:
            yield from tensors_in(one, seen)
    elif type(value).__module__.startswith("gpart."):
        yield from tensors_in(vars(value), seen)


def check_untouched(model, adapter, weights, indices, warm):
    held = adapter.weights
    assert all(has_memory(tensor) for tensor in tensors_in(held, {id(held.home)}))
    assert not held.scope.open
    assert not len(held.scope.values)
    assert not held.scope.masks
    other, other_adapter = adapted(weights, indices, warm)
    for _ in range(2):
        assert all(a.equal(b) for a, b in zip(train(model, adapter), train(other, other_adapter), strict=True))


def by_grad(call, theta):
    return grad(lambda t: call(t, IDS).square().sum())(theta)


def by_sample(call, theta):
    return vmap(grad(lambda t, ids: call(t, ids[None]).square().sum()), (None, 0))(theta, IDS)


def by_sweep(call, theta):
    return vmap(lambda factor: call(factor * theta, IDS))(torch.tensor([0.0, 1.0, -1.0]))


def by_jvp(call, theta):
    return torch.stack(jvp(lambda t: call(t, IDS), (theta,), (torch.arange(7.0),)))


def by_dual(call, theta):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(call(forward_ad.make_dual(theta, torch.arange(7.0)), IDS)).tangent.clone()


def by_hessian(call, theta):
    return hessian(lambda t: call(t, IDS).square().sum())(theta)


def by_batch(call, theta):
    theta = theta.clone().requires_grad_()
    return torch.autograd.grad(call(theta, IDS).sum(0), theta, torch.eye(3), is_grads_batched=True)[0]


def by_outer_vmap(call, theta):
    theta = theta.clone().requires_grad_()
    out = call(theta, IDS).sum(0)
    return vmap(lambda unit: torch.autograd.grad(out, theta, unit, retain_graph=True)[0])(torch.eye(3))


def by_recording(call, theta):
    return make_fx(grad(lambda t: call(t, IDS).square().sum()))(torch.zeros(7))(theta)


QUICK = [by_grad, by_sample, by_sweep, by_jvp, by_dual]
SLOW = [by_hessian, by_batch, by_outer_vmap, by_recording]
FEW = [("kept", "stored"), ("recomputed", "computed")]


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize(
    ("way", "weights", "indices"),
    [(way, *setting) for ways, settings in ((QUICK, SETTINGS), (SLOW, FEW)) for way in ways for setting in settings],
)
def test_function_transforms(way, weights, indices, warm):
    model, adapter = adapted(weights, indices, warm)

    def call(theta, ids):
        return functional_call(model, {adapter.theta_name: theta}, (ids,))

    theta = adapter.theta.detach().clone()
    torch.testing.assert_close(way(call, theta), way(reference(adapter), theta), rtol=1e-4, atol=1e-5)
    check_untouched(model, adapter, weights, indices, warm)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_followed_read_has_the_bits_of_an_ordinary_one(dtype):
    model, _ = adapted()
    model.to(dtype)
    with torch.no_grad():
        ordinary = [model.embed.weight, model.conv.weight, model.layer.weight]
        followed = vmap(lambda _: (model.embed.weight, model.conv.weight, model.layer.weight), out_dims=None)
        for one, other in zip(ordinary, followed(torch.zeros(2)), strict=True):
            assert one.dtype == dtype
            assert one.equal(other)


def test_a_followed_mask_is_one_for_all_samples_of_a_pass_as_it_is_without():
    model, adapter = adapted(dropout=0.5)

    def loss(theta, ids):
        return functional_call(model, {adapter.theta_name: theta}, (ids,)).square().sum()

    theta = adapter.theta.detach()
    torch.manual_seed(5)
    each = vmap(grad(lambda t, ids: loss(t, ids[None])), (None, 0))(theta, IDS)
    torch.manual_seed(5)
    torch.testing.assert_close(each.sum(0), grad(loss)(theta, IDS), rtol=1e-4, atol=1e-5)
    torch.manual_seed(5)
    model(IDS).square().sum().backward()
    torch.testing.assert_close(each.sum(0), adapter.theta.grad, rtol=1e-4, atol=1e-5)


def traced(model):
    return torch.jit.trace(model, IDS)


def exported(model):
    return torch.export.export(model, (IDS,)).module()


def exported_strictly(model):
    return torch.export.export(model, (IDS,), strict=True).module()


def exported_and_read_again(model):
    file = io.BytesIO()
    torch.export.save(torch.export.export(model, (IDS,)), file)
    file.seek(0)
    return torch.export.load(file).module()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore:.*side effects:UserWarning")
@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize(("weights", "indices"), FEW)
@pytest.mark.parametrize(
    "record", [traced, exported, pytest.param(exported_strictly, marks=needs_compiler), exported_and_read_again]
)
def test_recorded_programs(record, weights, indices, warm):
    model, adapter = adapted(weights, indices, warm)
    program = record(model)
    other, _ = adapted(weights, indices, warm)
    with torch.no_grad():
        assert program(IDS).equal(other(IDS))
        assert program(IDS.flip(0)).equal(other(IDS.flip(0)))
    check_untouched(model, adapter, weights, indices, warm)


def test_an_exported_program_has_plain_operations_and_trains():
    model, adapter = adapted()
    graph = torch.export.export(model, (IDS,))
    names = {str(node.target) for node in graph.graph.nodes if node.op == "call_function"}
    assert all(name.startswith("aten.") and "promote" not in name for name in names)
    program = graph.module()
    program(IDS).square().sum().backward()
    model(IDS).square().sum().backward()
    (found,) = (value.grad for name, value in program.named_parameters() if name == adapter.theta_name)
    torch.testing.assert_close(found, adapter.theta.grad, rtol=1e-4, atol=1e-5)


def test_an_exported_program_draws_its_masks_itself():
    model, _ = adapted(dropout=0.5)
    program = torch.export.export(model, (IDS,)).module()
    assert not program(IDS).equal(program(IDS))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("dynamo", [False, True])
def test_onnx(dynamo):
    onnx = pytest.importorskip("onnx")
    if dynamo:
        pytest.importorskip("onnxscript")
    from onnx.reference import ReferenceEvaluator

    model, adapter = adapted(indices="computed")
    model.eval()
    file = io.BytesIO()
    torch.onnx.export(model, (IDS,), file, dynamo=dynamo)
    read = onnx.load_from_string(file.getvalue())
    (found,) = ReferenceEvaluator(read).run(None, {read.graph.input[0].name: IDS.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), model(IDS), rtol=1e-5, atol=1e-5)
    model.train()
    check_untouched(model, adapter, "auto", "computed", warm=False)


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize(("weights", "indices"), SETTINGS)
def test_fake_tensors(weights, indices, warm):
    model, adapter = adapted(weights, indices, warm)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        found = model(mode.from_tensor(IDS))
    assert isinstance(found, FakeTensor)
    assert found.shape == (4, 3)
    mode = FakeTensorMode()  # and with fake parameters, whose operations are followed outside of any mode
    values = {name: mode.from_tensor(value) for name, value in model.named_parameters()}
    assert isinstance(functional_call(model, values, (mode.from_tensor(IDS),)), FakeTensor)
    with adapter.cached(), torch.no_grad(), mode:
        assert isinstance(functional_call(model, values, (mode.from_tensor(IDS),)), FakeTensor)
    check_untouched(model, adapter, weights, indices, warm)


def test_a_model_made_of_fake_tensors_needs_no_group_index(monkeypatch):
    monkeypatch.setattr(Partition, "groups", lambda *args, **options: pytest.fail("group indices were computed"))
    with FakeTensorMode():
        model, adapter = adapted(dropout=0.1)
        model(torch.zeros(4, 3, dtype=torch.int64)).sum().backward()
    assert isinstance(adapter.theta.grad, FakeTensor)


def test_a_pass_that_breaks_off_leaves_nothing():
    model, adapter = adapted("recomputed", "stored", warm=True)

    def call(theta, ids):
        return functional_call(model, {adapter.theta_name: theta, "head.weight": torch.zeros(3, 9)}, (ids,))

    with pytest.raises(RuntimeError):
        by_grad(call, adapter.theta.detach())
    check_untouched(model, adapter, "recomputed", "stored", warm=True)


def test_a_mode_that_only_watches_changes_nothing():
    model, adapter = adapted("kept", "stored")
    other, other_adapter = adapted("kept", "stored")
    with FlopCounterMode(display=False):
        watched = train(model, adapter)
    assert all(a.equal(b) for a, b in zip(watched, train(other, other_adapter), strict=True))
