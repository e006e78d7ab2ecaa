"""Every map from theta to the update does what the partition does: W0 + P·theta, Pᵀ·g, and all of an adapter's life."""

from __future__ import annotations

import copy
import io
import itertools
import pickle

import pytest
import torch
from projection_maps import dense_map
from releases import needs_compiler
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.func import functional_call, grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from gpart import GPartConfig, attach, load_adapter
from gpart.adapter import GPartAdapter
from gpart.adapters import set_active
from gpart.config import PROJECTIONS
from gpart.errors import GPartError
from gpart.materialize.scaling import Scaling
from gpart.ops import block
from gpart.projections.fastfood import Fastfood
from gpart.projections.registry import SCHEMES
from gpart.serialization.folder import read_folder

OTHERS = tuple(name for name in PROJECTIONS if name != "partition")
IDS = torch.arange(12).view(4, 3) % 10
D = 10 * 8 + 3 * 8 + 2 * 8 + 3 + 2 + 8 * 8 + 8
CONFIG = {"d": 23, "target_modules": ["embed", "layer", "twice"], "bias": "all", "seed": 6,
          "slices": {"layer": [[0, 3], [5, 7]]}, "modules_to_save": ["head"]}  # fmt: skip


class Net(nn.Module):
    """A tied embedding, a layer that is cut into two blocks, one that runs twice, biases, and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(10, 8)
        self.layer = nn.Linear(8, 8)
        self.twice = nn.Linear(8, 8)
        self.back = nn.Linear(8, 10, bias=False)
        self.back.weight = self.embed.weight
        self.head = nn.Linear(10, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.layer(self.embed(ids)).tanh()
        return self.head(self.back(self.twice(self.twice(x).tanh()))).sum(1)


def adapted(projection: str, dtype: torch.dtype = torch.float32, **options: object) -> tuple[Net, GPartAdapter]:
    memory = {key: options.pop(key) for key in ("indices", "weights") if key in options}
    model = Net() if dtype == torch.float32 else Net().to(dtype)
    adapter = attach(model, GPartConfig(**{**CONFIG, "projection": projection, **options}), **memory)
    with torch.no_grad():
        adapter.theta.copy_(torch.linspace(-1, 1, adapter.config.d))
    return model, adapter


def flat(adapter: GPartAdapter, values: dict[str, Tensor]) -> Tensor:
    """Tensors by weight as the vector of length D."""
    out = torch.zeros(adapter.size, dtype=torch.float64)
    for weight in adapter.plan.weights:
        for start, stop, offset in weight.blocks:
            piece = values[weight.name].narrow(weight.dim, start, stop - start).reshape(-1)
            out[offset : offset + piece.numel()] = piece.double()
    return out


def step(model: Net, adapter: GPartAdapter) -> list[Tensor]:
    adapter.theta.grad = None
    loss = model(IDS).float().square().sum()
    loss.backward()
    return [loss.detach(), adapter.theta.grad]


@pytest.mark.parametrize(
    ("projection", "isometric"),
    [(name, flag) for name in OTHERS for flag in (True, False) if flag or name != "fastfood"],
)
def test_the_update_is_p_theta_and_the_gradient_its_transpose(projection, isometric):
    model, adapter = adapted(projection, isometric=isometric)
    assert adapter.size == D
    p = torch.from_numpy(dense_map(projection, D, 23, 6, isometric))
    update = flat(adapter, {weight.name: adapter.delta(weight.name) for weight in adapter.plan.weights})
    torch.testing.assert_close(update, p @ adapter.theta.detach().double(), rtol=1e-5, atol=1e-6)
    assert adapter.delta("layer.weight")[3:5].eq(0).all()
    _, found = step(model, adapter)
    plain = Net()
    merged = {name: value.clone().requires_grad_() for name, value in adapter.merged_weights().items()}
    functional_call(plain, merged, (IDS,)).square().sum().backward()
    wanted = p.T @ flat(adapter, {name: value.grad for name, value in merged.items()})
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-4)
    assert found.norm() > 1


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("projection", OTHERS)
def test_no_memory_setting_changes_a_bit(projection, dropout):
    results = []
    indices = ("auto", "stored") if projection == "authors-materialized" else ("auto", "stored", "computed")
    for one, weights in itertools.product(indices, ("kept", "forward", "recomputed")):
        model, adapter = adapted(projection, dropout=dropout, indices=one, weights=weights)
        torch.manual_seed(7)
        results.append([*step(model, adapter), *step(model, adapter)])
        if dropout:
            assert not results[0][0].equal(results[0][2])
    for found in results[1:]:
        assert all(a.equal(b) for a, b in zip(found, results[0], strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("projection", OTHERS)
def test_an_adapters_life(projection, dtype, tmp_path):
    plain = Net().to(dtype)
    model, adapter = adapted(projection, dtype)
    with torch.no_grad():
        wanted = model(IDS)
        assert not wanted.equal(plain(IDS))
        with adapter.disabled():
            assert model(IDS).equal(plain(IDS))
        with adapter.cached():
            assert model(IDS).equal(wanted)
            assert model(IDS).equal(wanted)
        adapter.merge()
        assert model(IDS).equal(wanted)
        base = plain.twice.weight.float()
        assert model.twice.weight.equal((base + adapter.delta("twice.weight")).to(dtype))  # summed wide, rounded once
        adapter.unmerge()
        assert model(IDS).equal(wanted)
        adapter.save(tmp_path)
        copied, sent = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
        assert copied(IDS).equal(wanted)
        assert sent(IDS).equal(wanted)
        again = Net().to(dtype)
        loaded = load_adapter(again, tmp_path)
        assert loaded.config == adapter.config
        assert again(IDS).equal(wanted)
        load_adapter(again, tmp_path)
    adapter.detach()
    assert all(a.equal(b) for a, b in zip(model.state_dict().values(), plain.state_dict().values(), strict=True))
    with torch.no_grad():
        unloaded = loaded.merge_and_unload()
        assert unloaded(IDS).equal(wanted)


@pytest.mark.parametrize("projection", OTHERS)
def test_inference_mode_first_and_training_afterwards(projection):
    model, adapter = adapted(projection)
    with torch.inference_mode():
        first = model(IDS)
    assert first.equal(model(IDS))
    other, other_adapter = adapted(projection)
    assert all(a.equal(b) for a, b in zip(step(model, adapter), step(other, other_adapter), strict=True))


@pytest.mark.parametrize("projection", OTHERS)
def test_where_torch_follows(projection):
    model, adapter = adapted(projection)

    def loss(theta: Tensor, ids: Tensor) -> Tensor:
        return functional_call(model, {adapter.theta_name: theta}, (ids,)).square().sum()

    theta = adapter.theta.detach().clone()
    each = vmap(grad(lambda t, ids: loss(t, ids[None])), (None, 0))(theta, IDS)
    recorded = make_fx(grad(lambda t: loss(t, IDS)))(torch.zeros(23))(theta)
    _, wanted = step(model, adapter)
    torch.testing.assert_close(each.sum(0), wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(recorded, wanted, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        ordinary = model.twice.weight
        (followed,) = vmap(lambda _: (model.twice.weight,), out_dims=None)(torch.zeros(2))
        assert followed.equal(ordinary)


@pytest.mark.parametrize("projection", OTHERS)
def test_fake_tensors_and_the_meta_device_compute_nothing(projection, monkeypatch):
    monkeypatch.setattr(Scaling, "_made", lambda *described: pytest.fail("constants were made"))
    with FakeTensorMode():
        model, adapter = adapted(projection)
        model(torch.zeros(4, 3, dtype=torch.int64)).sum().backward()
    assert isinstance(adapter.theta.grad, FakeTensor)
    monkeypatch.undo()
    with torch.device("meta"):
        model = Net()
    attach(model, GPartConfig(**{**CONFIG, "projection": projection}))
    assert model(IDS.to("meta")).is_meta


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("projection", "strict"),
    [
        ("hash", False),
        *(pytest.param(*both, marks=SLOW) for both in (("fastfood", True), ("fastfood", False), ("hash", True))),
    ],
)
def test_exported_programs(projection, strict):
    model, _ = adapted(projection)
    with torch.no_grad():
        program = torch.export.export(model, (IDS,), strict=strict).module()
        file = io.BytesIO()
        torch.export.save(torch.export.export(model, (IDS,), strict=strict), file)
        file.seek(0)
        assert program(IDS).equal(model(IDS))
        assert torch.export.load(file).module()(IDS.flip(0)).equal(model(IDS.flip(0)))


COMPILED = [
    ("hash", "stored"),
    ("authors-stateless", "stored"),
    ("authors-materialized", "stored"),
    ("fastfood", "computed"),
]


@needs_compiler
@pytest.mark.parametrize(
    ("projection", "indices"),
    [("hash", "computed"), ("fastfood", "stored"), *(pytest.param(*both, marks=SLOW) for both in COMPILED)],
)
def test_a_compiled_model_is_one_graph_with_the_same_numbers(projection, indices):
    torch._dynamo.reset()
    model, adapter = adapted(projection, indices=indices)
    other, other_adapter = adapted(projection, indices=indices)
    run = torch.compile(model, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        adapter.theta.grad = None
        loss = run(IDS).square().sum()
        loss.backward()
        wanted, gradient = step(other, other_adapter)
        torch.testing.assert_close(loss.detach(), wanted, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(adapter.theta.grad, gradient, rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            for one in (adapter, other_adapter):
                one.theta.sub_(0.01 * gradient)


@pytest.mark.parametrize("projection", OTHERS)
def test_the_gradient_is_exact_in_float64(projection):
    model = nn.Sequential(nn.Linear(3, 4)).double()
    adapter = attach(model, GPartConfig(3, ["0"], bias="all", projection=projection))
    adapter.theta.data = adapter.theta.data.double()
    x, name = torch.randn(2, 3, dtype=torch.float64), adapter.theta_name
    theta = torch.randn(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: functional_call(model, {name: t}, (x,)).square(), theta)


def test_groups_that_come_one_after_the_other_are_not_computed_at_each_use():
    model = Net()
    with pytest.raises(
        GPartError, match=r"indices='computed' and projection='authors-materialized' exclude each other.*generator"
    ):
        adapted("authors-materialized", indices="computed")
    attach(model, GPartConfig(**CONFIG, projection="authors-materialized"), indices="stored")


def test_the_model_is_as_it_was_where_it_is_refused():
    model, before = Net(), Net().state_dict()
    with pytest.raises(GPartError):
        attach(model, GPartConfig(**CONFIG, projection="authors-materialized"), indices="computed")
    assert all(a.equal(b) for a, b in zip(model.state_dict().values(), before.values(), strict=True))
    assert model.twice.weight.requires_grad
    assert type(model.twice) is nn.Linear
    assert attach(model, GPartConfig(**CONFIG)).size == D


@pytest.mark.parametrize("indices", ["stored", "computed"])
@pytest.mark.parametrize("projection", ["hash", "authors-stateless"])
def test_compiled_code_is_asked_for_no_arithmetic_but_its_own(projection, indices, monkeypatch):
    """Above the size from which C is used: with the arithmetic of gpart-v1 the groups would be others."""
    model = nn.Sequential(nn.Linear(512, 512, bias=False))
    adapter = attach(model, GPartConfig(99, ["0"], projection=projection, seed=4), indices=indices)
    with torch.no_grad():
        adapter.theta.copy_(torch.linspace(-1, 1, 99))
    groups = adapter.weights.scaling.groups.groups().long()
    factor = 1 / groups.bincount(minlength=99).float().sqrt()
    base = adapter.base_parameters()["0.weight"].detach()
    assert model[0].weight.flatten().equal(base.flatten() + (adapter.theta.detach() * factor)[groups])
    source = block.index_source(adapter.weights.blocks(adapter.plan.weights[0], base.device)[0], base.device)
    assert source is None if indices == "computed" else source.partition is None
    model[0].weight.mul(torch.arange(512 * 512).view(512, 512) % 11).sum().backward()
    wanted = torch.zeros(99, dtype=torch.float64).index_add(0, groups, (torch.arange(512 * 512) % 11).double()) * factor
    torch.testing.assert_close(adapter.theta.grad.double(), wanted, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("projection", ["authors-stateless", "authors-materialized", "hash"])
def test_the_order_of_operations_is_the_authors(projection):
    """theta * (1/sqrt(n)), rounded, looked up, added: theta / sqrt(n) has other last bits."""
    _, adapter = adapted(projection, d=41, bias="none")
    groups = adapter.weights.scaling.groups.groups().long()
    counts = torch.bincount(groups, minlength=41)
    scaled = adapter.theta.detach() * (1.0 / torch.sqrt(counts.clamp(min=1).float()))
    assert not scaled.equal(adapter.theta.detach() / counts.clamp(min=1).float().sqrt())
    merged = adapter.merged_weights()["twice.weight"]
    weight = next(one for one in adapter.plan.weights if one.name == "twice.weight")
    (_, _, offset), base = weight.blocks[0], Net().twice.weight
    assert merged.flatten().equal(scaled[groups[offset : offset + 64]] + base.flatten())


def test_an_empty_group_is_legal_and_has_no_gradient():
    model = nn.Sequential(nn.Linear(4, 5, bias=False))
    adapter = attach(model, GPartConfig(20, ["0"], projection="hash"))
    sizes = adapter.weights.scaling.groups.sizes()
    assert (sizes == 0).any()
    with torch.no_grad():
        adapter.theta.fill_(3)
    model(torch.ones(1, 4)).sum().backward()
    assert adapter.theta.grad[sizes == 0].eq(0).all()
    assert adapter.theta.grad[sizes > 0].ne(0).all()
    torch.testing.assert_close(adapter.delta("0.weight").norm(), adapter.theta.detach()[sizes > 0].norm())


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_the_file_names_the_function(projection, tmp_path):
    _, adapter = adapted(projection)
    adapter.save(tmp_path)
    manifest, _ = read_folder(tmp_path)
    assert manifest.config.projection == projection
    assert manifest.scheme == SCHEMES[projection]
    assert manifest.to_dict()["scheme"] == SCHEMES[projection]


def test_every_choice_of_a_config_has_a_function():
    assert tuple(SCHEMES) == PROJECTIONS
    assert len(set(SCHEMES.values())) == len(SCHEMES)


def test_an_attached_adapter_of_another_map_is_not_filled(tmp_path):
    adapted("hash")[1].save(tmp_path)
    model, _ = adapted("partition")
    with pytest.raises(GPartError, match="projection is 'hash' and 'partition'"):
        load_adapter(model, tmp_path)


@pytest.mark.parametrize(
    "other", [{"projection": "fastfood", "seed": 9}, {"projection": "fastfood"}, {"projection": "hash"}]
)
def test_several_adapters_are_summed_by_the_map_of_each(other):
    model, first = adapted("fastfood")
    second = attach(model, GPartConfig(**{**CONFIG, **other, "modules_to_save": None}), "second")
    with torch.no_grad():
        second.theta.copy_(torch.linspace(1, -2, 23))
        set_active(model, ["default", "second"], weights=[0.5, -1.0])
        wanted = Net().twice.weight + 0.5 * first.delta("twice.weight") - second.delta("twice.weight")
        torch.testing.assert_close(model.twice.weight, wanted, rtol=1e-6, atol=1e-6)
        first.merge()
        torch.testing.assert_close(model.twice.weight, wanted, rtol=1e-6, atol=1e-6)


def test_a_dense_product_is_computed_once_for_all_weights(monkeypatch):
    calls = []
    apply = Fastfood.apply
    monkeypatch.setattr(Fastfood, "apply", lambda self, *given: calls.append(1) or apply(self, *given))
    model, adapter = adapted("fastfood")
    for use in (lambda: model(IDS).sum().backward(), adapter.merged_weights, adapter.merge):
        calls.clear()
        use()
        assert len(calls) == 1
    assert not adapter.weights.scope.open
    assert not len(adapter.weights.scope.values)
