"""Where theta stands: nothing that iterates, indexes or counts a container's children meets it, and names stay plain."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from gpart import GPartConfig, attach, get_adapters, load_adapter, set_active
from gpart.callbacks import GPartCallback

X = torch.linspace(-1, 1, 32).view(4, 8)


class Pipeline(nn.Sequential):
    """As sentence-transformers' model: a Sequential that calls a method of each of its children."""

    def save(self) -> list[str]:
        return [module.kind() for module in self]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name, module in self.named_children():
            x = module(x) if name else x
        return x


class Stage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(8, 8)

    def kind(self) -> str:
        return "stage"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lin(x).tanh()


class Boosted(nn.Module):
    """A subclass of Module whose forward runs and counts its children, as old torch code does."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = Stage(), Stage()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        children = list(self.children())
        return sum(child(x) for child in children) / len(children)


class Later(nn.Module):
    """Its children are asked for in a function inside its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = Stage(), Stage()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([*map(lambda _: sum(child(x) for child in self.children()), range(2))]).mean(0)  # noqa: C417


class Experts(nn.ModuleDict):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([expert(x) for expert in self.values()]).mean(0) * len(self)


class Listed(nn.ModuleList):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self[:-1]:
            x = layer(x).relu()
        return self[-1](x) / len(self)


def nested() -> nn.Module:
    return nn.Sequential(OrderedDict(body=nn.Sequential(nn.Linear(8, 8), nn.ReLU()), blocks=Pipeline(Stage(), Stage())))


KINDS: dict[str, Callable[[], nn.Module]] = {
    "sequential subclass": lambda: Pipeline(Stage(), Stage()),
    "forward over children": Boosted,
    "children in a lambda": Later,
    "dict of experts": lambda: Experts({"a": nn.Linear(8, 8), "b": Stage()}),
    "list with an index from the end": lambda: Listed([nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)]),
    "containers in containers": nested,
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_function_at_theta_0_is_the_bases_and_nothing_was_added_to_iterate(kind: str, same_bits: Any) -> None:
    model = KINDS[kind]().eval()
    expected, children = model(X), [name for name, _ in model.named_children()]
    keys = list(model.state_dict())
    adapter = attach(model, GPartConfig(d=7, target_modules="all-linear"))
    assert same_bits(model(X), expected)
    assert [name for name, _ in model.named_children()] == children
    assert [key for key in model.state_dict() if key != adapter.theta_name] == keys
    assert get_adapters(model) == {"default": adapter}
    with torch.no_grad():
        adapter.theta.normal_()
    moved = model(X)
    assert not torch.equal(moved, expected)
    adapter.merge()
    assert same_bits(model(X), moved)
    adapter.detach()
    assert same_bits(model(X), expected)
    assert list(model.state_dict()) == keys
    assert not any(hasattr(module, "gpart") for module in model.modules())


def test_what_each_element_is_asked_for_is_there() -> None:
    model = Pipeline(Stage(), Stage())
    attach(model, GPartConfig(d=7, target_modules=["lin"]))
    assert model.save() == ["stage", "stage"]
    assert len(model) == 2
    assert model[-1] is list(model)[1]


@pytest.mark.parametrize("kind", KINDS)
def test_as_the_only_child_of_a_lightning_module(kind: str, lit_trainer: Any, lit_loader: Any, lit_class: Any) -> None:
    class Project(lit_class):
        def __init__(self) -> None:
            super().__init__()
            self.net = KINDS[kind]()

    torch.manual_seed(1)
    plain = Project()
    expected = plain(X)
    callback = GPartCallback(d=7, target_modules="all-linear")
    trainer = lit_trainer(callback, max_epochs=1)
    trainer.validate(plain, lit_loader(), verbose=False)
    assert plain(X).equal(expected)
    trainer.fit(plain, lit_loader())
    assert callback.adapter.theta.count_nonzero() == 7


def test_nothing_but_containers_is_refused_as_it_was(state_of: Any) -> None:
    class Counted(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + len(list(self.children()))

    model = nn.Sequential(Counted(8, 8))
    state = state_of(model)
    with pytest.raises(
        ValueError, match=r"whose children nobody iterates.*'the model \(Sequential\)', '0 \(Counted\)'"
    ):
        attach(model, GPartConfig(d=2, target_modules=["0"]))
    state.assert_kept()


class Own(nn.Module):
    """Iterates its children in another method."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.run(x)

    def run(self, x: torch.Tensor) -> torch.Tensor:
        for child in self.children():
            x = child(x)
        return x


class Outside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return in_turn(self, x)


def in_turn(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    for child in module.children():
        x = child(x)
    return x


def test_what_forward_calls_is_looked_at_too() -> None:
    model = Own()
    expected = model(X)
    attach(model, GPartConfig(d=2, target_modules=["one"]))
    assert model(X).equal(expected)


def test_a_call_of_the_holder_says_so() -> None:
    model = Outside()
    attach(model, GPartConfig(d=2, target_modules=["one"]))
    with pytest.raises(ValueError, match=r"adapter 'default' was called.*runs all its children in turn"):
        model(X)


def test_a_container_made_of_the_children_since_is_found_when_fit_starts(
    lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    class Cut(lit_class):
        """The usual way to make a backbone of a network; here after the callback's setup."""

        def __init__(self) -> None:
            super().__init__()
            self.net = nn.TransformerDecoderLayer(8, 2, 8)  # any module that is no container

        def setup(self, stage: str) -> None:
            self.cut = nn.Sequential(*self.net.children())

    with pytest.raises(ValueError, match=r"is one of the elements of cut \(Sequential\)"):
        lit_trainer(GPartCallback(d=2, target_modules=["linear1"])).fit(Cut(), lit_loader())


# Wrappers


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel], ids=["compiled", "DataParallel"])
def test_a_wrapper_is_looked_through(wrap: Any, same_bits: Any) -> None:
    inner = Boosted()
    expected = inner(X)
    outer = nn.ModuleDict({"net": wrap(inner)})
    adapter = attach(outer, GPartConfig(d=7, target_modules="all-linear"))
    assert [weight.name for weight in adapter.plan.weights] == ["net.one.lin.weight", "net.two.lin.weight"]
    assert adapter.theta_name == "net.one.gpart.default.theta"
    assert same_bits(inner(X), expected)
    adapter.detach()
    direct = attach(wrap(inner), GPartConfig(d=7, target_modules="all-linear"))
    assert direct.model is inner
    assert get_adapters(wrap(inner)) == {"default": direct}


def test_statistics_inside_a_compiled_module_are_saved(tmp_path: Any) -> None:
    def made(compiled: bool = False) -> nn.ModuleDict:
        torch.manual_seed(0)
        body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        return nn.ModuleDict({"body": torch.compile(body, backend="eager") if compiled else body})

    net = made(compiled=True)
    adapter = attach(net, GPartConfig(d=3, target_modules=["0"]))
    norm = net["body"]._orig_mod[1]
    norm.running_mean.add_(1)
    assert list(adapter.changed_buffers()) == ["body.1.running_mean"]
    adapter.save(tmp_path)
    loaded = made()
    load_adapter(loaded, tmp_path)
    assert loaded["body"][1].running_mean.tolist() == [1, 1, 1, 1]
    attach(net, GPartConfig(d=3, target_modules=["0"]), name="second")
    assert norm.running_mean.tolist() == [0, 0, 0, 0]
    set_active(net, "default")
    assert norm.running_mean.tolist() == [1, 1, 1, 1]


def test_a_state_dict_of_its_own_is_not_asked(tmp_path: Any) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

        def state_dict(self) -> Any:  # without arguments, as nothing but its own code calls it
            return {"layer": self.layer.weight}

    net = Own()
    adapter = attach(net, GPartConfig(d=3, target_modules=["layer"]))
    net.norm.running_var.add_(1)
    adapter.save(tmp_path)
    load_adapter(loaded := Own(), tmp_path)
    assert loaded.norm.running_var.tolist() == [2, 2, 2, 2]


def test_a_network_inside_ddp_is_refused_by_name(tmp_path: Any, state_of: Any) -> None:
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        inner = Boosted()
        replicated = nn.parallel.DistributedDataParallel(inner)
        state = state_of(inner)
        with pytest.raises(ValueError, match=r"DistributedDataParallel is around the model already"):
            attach(replicated, GPartConfig(d=7, target_modules="all-linear"))
        state.assert_kept()
    finally:
        torch.distributed.destroy_process_group()
