"""What comes of an adapter whose model was changed by others since it was attached."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from gpart import GPartConfig, GPartError, active_adapters, attach, get_adapters, load_adapter, set_active
from gpart.adapter import find_adapters
from gpart.bases.fitting import Needs, head_size
from gpart.serialization.sources import read_adapter
from gpart.serving import AdapterStore, Switch


class Positions(nn.Module):
    """A table that grows with the longest input, as M2M100 and older rotary embeddings have it."""

    def __init__(self, length: int = 4, persistent: bool = False) -> None:
        super().__init__()
        self.persistent = persistent
        self.make(length)

    def make(self, length: int) -> None:
        table = torch.arange(length).float()[:, None].repeat(1, 8) / 8
        self.register_buffer("table", table, persistent=self.persistent)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > len(self.table):
            self.make(len(x))
        return x + self.table[: len(x)]


class Net(nn.Module):
    def __init__(self, persistent: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.positions, self.layer, self.head = Positions(4, persistent), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(self.positions(x)).relu())


def adapted(net: Net | None = None, **more: Any) -> Net:
    net = Net() if net is None else net
    adapter = attach(net, GPartConfig(**{"d": 5, "target_modules": ["layer"], "modules_to_save": ["head"], **more}))
    with torch.no_grad():
        adapter.theta.copy_(torch.linspace(-1, 1, 5))
    return net


SHORT, LONG = torch.ones(3, 8), torch.ones(9, 8)


def test_a_buffer_that_has_grown_is_put_back_as_it_was() -> None:
    net = adapted()
    net(LONG)
    get_adapters(net)["default"].detach()
    assert net.positions.table.equal(Positions().table)
    assert all(value.requires_grad for value in net.parameters())
    assert net(LONG).equal(Net()(LONG))


@pytest.mark.parametrize("persistent", [False, True])
def test_a_buffer_that_was_expanded_is_put_back(persistent: bool) -> None:
    net = Net()
    net.register_buffer("mask", torch.ones(1).expand(9), persistent=persistent)
    adapted(net)
    get_adapters(net)["default"].detach()
    assert net.mask.stride() == (0,)
    adapted(net)
    net.mask = torch.zeros(1).expand(9)
    get_adapters(net)["default"].detach()
    assert net.mask.tolist() == [1] * 9


@pytest.mark.parametrize("persistent", [False, True])
def test_a_switch_goes_on_after_a_buffer_has_grown(persistent: bool, tmp_path: Path) -> None:
    expected = {None: Net()(SHORT)}
    for seed in (0, 1):
        net = adapted(Net(persistent), seed=seed)
        expected[f"u{seed}"] = net(SHORT)
        net(torch.ones(5 + seed, 8))
        get_adapters(net)["default"].save(tmp_path / f"u{seed}")
    switch = Switch(Net(persistent), AdapterStore(tmp_path))
    for name, x in (("u0", LONG), ("u1", SHORT), ("u1", LONG), ("u0", SHORT), (None, SHORT), ("u1", SHORT)):
        switch.use(name)
        answer = switch.model(x)
        assert x is LONG or answer.equal(expected[name])


def test_a_persistent_buffer_that_has_grown_is_the_adapters(tmp_path: Path) -> None:
    net = adapted(Net(persistent=True))
    long, short = net(LONG), net(SHORT)
    attach(net, GPartConfig(d=3, target_modules=["layer"], seed=1), name="second")
    assert net.positions.table.equal(Positions().table)  # the base's
    assert net(SHORT).equal(Net()(SHORT))
    set_active(net, "default")
    assert len(net.positions.table) == len(LONG)
    assert net(SHORT).equal(short)
    get_adapters(net)["default"].save(tmp_path)
    loaded = Net(persistent=True)
    needs = Needs.of(*read_adapter(tmp_path))
    assert (needs.lacking(loaded), needs.off(loaded), head_size(loaded, needs)) == ([], (0, 0), None)
    load_adapter(loaded, tmp_path)
    assert loaded.positions.table.equal(net.positions.table)
    assert loaded(LONG).equal(long)
    loaded(torch.ones(12, 8))
    load_adapter(loaded, tmp_path)
    assert loaded.positions.table.equal(net.positions.table)


def test_a_switch_that_fails_leaves_the_adapter_that_was_active(monkeypatch: pytest.MonkeyPatch) -> None:
    net = adapted()
    second = attach(net, GPartConfig(d=3, target_modules=["layer"], modules_to_save=["head"], seed=1), name="second")
    with torch.no_grad():
        second.theta.fill_(1.0)
    expected = net(SHORT)

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr("gpart.injection.heads._first", full)
    with pytest.raises(torch.OutOfMemoryError):
        set_active(net, "default")
    assert active_adapters(net) == {"second": 1.0}
    assert net(SHORT).equal(expected)


def test_a_switch_whose_detach_fails_does_not_take_the_base_for_an_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in (0, 1):
        get_adapters(adapted(seed=seed))["default"].save(tmp_path / f"u{seed}")
    switch = Switch(Net(), AdapterStore(tmp_path))
    switch.use("u0")
    expected, adapter = switch.model(SHORT), switch.adapter
    assert adapter is not None
    take_off = adapter.detach

    def failing() -> nn.Module:
        take_off()
        raise RuntimeError("out of memory")

    monkeypatch.setattr(adapter, "detach", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        switch.use("u1")
    assert switch.active is None
    switch.use("u0")
    assert switch.model(SHORT).equal(expected)


@pytest.mark.parametrize("saved", [["head"], None])
def test_a_head_that_was_cut_off_since(saved: list[str] | None, tmp_path: Path) -> None:
    def cut() -> tuple[Net, Any]:
        net = adapted(modules_to_save=saved)
        net.head = nn.Identity()  # as timm's reset_classifier does
        return net, get_adapters(net)["default"]

    net, adapter = cut()
    features = net(SHORT)
    with pytest.raises(GPartError, match=r"Net has no 'head\.(weight|bias)' any more.* 'default'"):
        adapter.save(tmp_path / "adapter")
    assert adapter.merge_and_unload()(SHORT).allclose(features)
    assert all(value.requires_grad for value in net.parameters())
    net, adapter = cut()
    adapter.detach()
    plain = Net()
    plain.head = nn.Identity()
    assert net(SHORT).equal(plain(SHORT))
    assert all(value.requires_grad for value in net.parameters())


def test_a_head_that_was_replaced_by_another_is_left() -> None:
    net = adapted()
    net.head = nn.Linear(8, 3)
    kept = net.head.weight.detach().clone()
    get_adapters(net)["default"].detach()
    assert net.head.weight.equal(kept)


def assigned(net: Net, value: torch.Tensor) -> None:
    net.layer.weight = nn.Parameter(value, requires_grad=False)


def registered(net: Net, value: torch.Tensor) -> None:
    net.layer.register_parameter("weight", nn.Parameter(value, requires_grad=False))


@pytest.mark.parametrize("put", [assigned, registered])
def test_a_weight_that_is_put_back_changed_is_told_to_count_the_update_twice(
    put: Callable[[Net, torch.Tensor], None],
) -> None:
    net = adapted()
    with pytest.warns(UserWarning, match=r"layer\.weight was assigned.* merge\(\) before") as told:
        put(net, net.layer.weight.detach() * 2)
    assert told[0].filename == __file__


def test_where_w0_is_meant_nothing_is_told() -> None:
    warnings.simplefilter("error")
    net, other = adapted(), Net().layer.weight.detach() * 2
    adapter = get_adapters(net)["default"]
    with adapter.disabled():
        assigned(net, net.layer.weight.detach() * 2)
    adapter.merge()
    assigned(net.eval(), net.layer.weight.detach())
    net = adapted()
    net.load_state_dict({**net.state_dict(), "layer.weight": other}, assign=True)
    assert get_adapters(net)["default"].base_parameters()["layer.weight"].equal(other)
    net = Net()
    attach(net, GPartConfig(d=5, target_modules=["layer"]))  # theta is 0: both are the same
    assigned(net, net.layer.weight.detach() * 2)
    net.head.weight = nn.Parameter(torch.ones(2, 8))
    net = adapted()
    net.layer.weight = net.get_parameter("layer.weight")  # W0 itself, as Transformers' tie_weights puts it
    with FakeTensorMode():  # no numbers to compare
        assigned(adapted(), torch.ones(8, 8))


def test_quantising_an_adapted_model_is_told() -> None:
    quantization = pytest.importorskip("torchao.quantization")
    net = adapted()
    with pytest.warns(UserWarning, match=r"layer\.weight was assigned"):
        quantization.quantize_(
            net, quantization.Int8WeightOnlyConfig(version=2), filter_fn=lambda module, name: name == "layer"
        )


def test_the_update_is_off_until_all_have_left() -> None:
    net, plain = adapted(), Net()
    adapter = get_adapters(net)["default"]
    updated = net(SHORT)
    first, second = ExitStack(), ExitStack()  # of two threads
    first.enter_context(adapter.disabled())
    second.enter_context(adapter.disabled())
    first.close()
    assert net(SHORT).equal(plain(SHORT))
    second.close()
    assert net(SHORT).equal(updated)


class Registry(nn.Module):
    """A base class that keeps a list of its classes, and wants to be told their kind."""

    kinds: dict[str, type] = {}  # noqa: RUF012  # as such classes are written

    def __init_subclass__(cls, kind: str) -> None:
        super().__init_subclass__()
        Registry.kinds[kind] = cls


class Registered(Registry, kind="linear"):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


def test_a_class_that_registers_its_subclasses_is_adapted_and_not_told() -> None:
    net = nn.Sequential(Registered(), Registered())
    adapter = attach(net, GPartConfig(d=3, target_modules=["0", "1"]))
    assert Registry.kinds == {"linear": Registered}
    assert isinstance(net[0], Registered)
    adapter.detach()
    assert type(net[0]) is Registered


class Normalise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((8,), 0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - self.mean


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch warns of TorchScript as a whole
@pytest.mark.parametrize("make", [Normalise, lambda: nn.Sequential(nn.Linear(8, 8))])
def test_a_scripted_module_beside_what_is_adapted(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    def network() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(torch.jit.script(make()), nn.Linear(8, 8), nn.Linear(8, 2))

    net = network()
    adapter = attach(net, GPartConfig(d=5, target_modules=["1"], modules_to_save=["2"]))
    with torch.no_grad():
        adapter.theta.fill_(1.0)
    net(SHORT).sum().backward()
    assert adapter.theta.grad is not None
    assert [one for _, one in find_adapters(net)] == [adapter]  # looks at every module, as the callback does
    adapter.save(tmp_path / "adapter")
    other = network()
    load_adapter(other, tmp_path / "adapter")
    assert other(SHORT).equal(net(SHORT))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_scripted_layer_itself_is_refused() -> None:
    net = nn.Sequential(torch.jit.script(nn.Linear(8, 8)), nn.Linear(8, 2))
    with pytest.raises(GPartError, match=r"is scripted.* before torch\.jit\.script"):
        attach(net, GPartConfig(d=5, target_modules=["0"]))
    assert all(value.requires_grad for value in net.parameters())


REBUILDERS: dict[str, Callable[[nn.Module], object]] = {
    "weight_norm": weight_norm,
    "spectral_norm": spectral_norm,
    "parametrized weight_norm": parametrizations.weight_norm,
    "orthogonal": parametrizations.orthogonal,
    "prune": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("rebuild", REBUILDERS.values(), ids=REBUILDERS)
def test_what_makes_a_weight_of_others_is_refused_on_an_adapted_layer(
    rebuild: Callable[[nn.Module], object], state_of: Any
) -> None:
    """Theta would count twice, or not reach the layer."""
    net = adapted()
    state, hooks = state_of(net), len(net.layer._forward_pre_hooks)
    with pytest.raises(
        GPartError, match=r"torch\.nn\.utils\.\w+ cannot take the place of layer\.weight, which is adapted"
    ):
        rebuild(net.layer)
    state.assert_kept()
    assert len(net.layer._forward_pre_hooks) == hooks
    rebuild(net.head)  # which is not adapted
    fresh = Net()
    rebuild(fresh.layer)  # without an adapter
    assert fresh(SHORT).shape == (3, 2)


def test_a_write_into_the_sum_is_told() -> None:
    net = adapted()
    expected = net(SHORT)
    with torch.no_grad():
        net.layer.weight.mul_(2)
    with pytest.warns(UserWarning, match=r"layer\.weight was written to in place"):
        assert net(SHORT).equal(expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net(SHORT).sum().backward()
        net(SHORT)
