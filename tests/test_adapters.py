"""Several adapters on one base: switching, sums, heads, names, deleting, merging."""

from __future__ import annotations

import copy
import gc
import io
import itertools
import warnings
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from releases import needs_compiler
from torch import Tensor, nn

from gpart import (
    GPartAdapter,
    GPartConfig,
    GPartError,
    active_adapters,
    attach,
    delete_adapter,
    get_adapters,
    load_adapter,
    rename_adapter,
    set_active,
)
from gpart.arithmetic import combine
from gpart.injection.surgery import add_hooks
from gpart.injection.targets import Plan
from gpart.materialize.weights import Weights


class Net(nn.Module):
    """Two layers that are adapted, a norm with statistics, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(6, 8)
        self.norm = nn.BatchNorm1d(8)
        self.two = nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(torch.relu(self.norm(self.one(x)))))


X = torch.linspace(-1, 1, 5 * 6).view(5, 6)

ONE = GPartConfig(d=7, target_modules=["one"], modules_to_save=["head"], seed=1)
BOTH = GPartConfig(d=11, target_modules=["one", "two"], seed=2, bias="all")
HEADED = GPartConfig(d=5, target_modules=["two"], modules_to_save=["head"], seed=3)


def build(dtype: torch.dtype = torch.float32) -> Net:
    torch.manual_seed(0)
    return Net().eval().to(dtype)


@torch.no_grad()
def shake(adapter: GPartAdapter, seed: int) -> GPartAdapter:
    """Other numbers in theta, in the head, and where it has one, in a buffer."""
    generator = torch.Generator().manual_seed(seed)
    adapter.theta.copy_(torch.randn(adapter.theta.shape, generator=generator))
    for value in adapter.saved_parameters().values():
        value.add_(torch.randn(value.shape, generator=generator))
    return adapter


def alone(config: GPartConfig, seed: int, dtype: torch.dtype = torch.float32) -> tuple[Net, GPartAdapter]:
    model = build(dtype)
    return model, shake(attach(model, config), seed)


def three(dtype: torch.dtype = torch.float32) -> tuple[Net, dict[str, GPartAdapter]]:
    model = build(dtype)
    made = {}
    for number, (name, config) in enumerate({"one": ONE, "both": BOTH, "headed": HEADED}.items()):
        made[name] = shake(attach(model, config, name=name), number)
    return model, made


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in model.state_dict().items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("order", list(itertools.permutations(["one", "both", "headed"])))
def test_each_of_several_computes_what_it_does_alone(order: tuple[str, ...], dtype: torch.dtype) -> None:
    model, made = three(dtype)
    configs = {"one": ONE, "both": BOTH, "headed": HEADED}
    numbers = {name: number for number, name in enumerate(configs)}
    x = X.to(dtype)
    for name in order * 2:
        set_active(model, name)
        assert active_adapters(model) == {name: 1.0}
        assert torch.equal(model(x), alone(configs[name], numbers[name], dtype)[0](x))
    set_active(model, [])
    assert torch.equal(model(x), build(dtype)(x))
    assert {name: adapter.active for name, adapter in made.items()} == dict.fromkeys(made, False)


def test_a_new_adapter_is_the_active_one_and_starts_from_the_base() -> None:
    model = build()
    shake(attach(model, ONE, name="one"), 0)
    attach(model, HEADED, name="headed")
    assert torch.equal(model(X), build()(X))
    assert active_adapters(model) == {"headed": 1.0}


def test_what_requires_a_gradient_is_what_is_active() -> None:
    model, _ = three()

    def trained() -> set[str]:
        return {name for name, value in model.named_parameters() if value.requires_grad}

    assert trained() == {"gpart.headed.theta", "head.weight", "head.bias"}
    set_active(model, "both")
    assert trained() == {"gpart.both.theta"}
    set_active(model, ["both", "one"])
    assert trained() == {"gpart.both.theta", "gpart.one.theta", "head.weight", "head.bias"}
    set_active(model, [])
    assert trained() == set()


@pytest.mark.parametrize("memory", ["kept", "forward", "recomputed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sum_is_the_base_and_the_deltas_rounded_once(dtype: torch.dtype, memory: str) -> None:
    model = build(dtype)
    first = shake(attach(model, BOTH, name="first", weights=memory), 0)
    second = shake(attach(model, GPartConfig(d=9, target_modules=["two"], seed=8), name="second", weights=memory), 1)
    base = model.two._parameters["weight"].detach().clone()
    set_active(model, ["first", "second"], weights=[0.5, -2.0])
    wide = base.float() + 0.5 * first.delta("two.weight") - 2.0 * second.delta("two.weight")
    exact = base.double() + 0.5 * first.delta("two.weight").double() - 2.0 * second.delta("two.weight").double()
    found = model.two.weight
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=2e-7 if dtype == torch.float32 else 0.02)
    assert (found == wide.to(dtype)).float().mean() > 0.95  # twice rounded, a tenth of bfloat16's would be another
    assert torch.equal(model.one.weight, base_and(0.5, first, "one.weight", dtype))


def base_and(factor: float, adapter: GPartAdapter, name: str, dtype: torch.dtype) -> Tensor:
    """By an adapter that holds the product itself."""
    model = build(dtype)
    product = attach(model, adapter.config)
    with torch.no_grad():
        product.theta.copy_(adapter.theta * factor)
    return (
        dict(model.named_parameters())[name]
        if name == ""
        else model.get_submodule(name.split(".", maxsplit=1)[0]).weight
    )


def test_on_one_layout_a_sum_is_arithmetic_on_theta_bit_for_bit() -> None:
    model = build()
    config = GPartConfig(d=7, target_modules=["one", "two"], seed=1)
    made = [shake(attach(model, config, name=name), number) for number, name in enumerate("abc")]
    set_active(model, ["a", "b", "c"], weights=[0.3, -1.7, 2.0])
    other = build()
    total = attach(other, config)
    with torch.no_grad():
        total.theta.copy_(made[0].theta.double() * 0.3 + made[1].theta.double() * -1.7 + made[2].theta.double() * 2.0)
    assert torch.equal(model(X), other(X))
    assert torch.equal(combine(dict(zip(made, [0.3, -1.7, 2.0], strict=True))).theta, total.theta)


def test_layouts_are_compared_once_and_not_at_every_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layout names every weight: to compare two at each of them takes the square of their number."""
    model, _ = three()
    set_active(model, ["one", "both", "headed"], heads="one")
    expected = model(X)
    asked: list[Weights] = []
    monkeypatch.setattr(Weights, "layout", property(asked.append))
    assert torch.equal(model(X), expected)
    assert not asked


def test_gradients_of_a_sum_are_those_of_the_formula() -> None:
    model = build()
    first = shake(attach(model, BOTH, name="first"), 0)
    second = shake(attach(model, GPartConfig(d=9, target_modules=["two"], seed=8), name="second"), 1)
    set_active(model, ["first", "second"], weights=[0.5, -2.0])
    model(X).square().sum().backward()
    found = first.theta.grad.clone(), second.theta.grad.clone()
    plain = build()
    weight = (plain.two.weight.detach() + 0.5 * first.delta("two.weight") - 2 * second.delta("two.weight")).detach()
    params = {"two.weight": weight.requires_grad_()}
    for name in ("one.weight", "one.bias", "two.bias"):
        params[name] = (dict(plain.named_parameters())[name] + 0.5 * first.delta(name)).detach().requires_grad_()
    torch.func.functional_call(plain, params, (X,)).square().sum().backward()
    grads = {name: value.grad for name, value in params.items()}
    expected = []
    for adapter, factor in ((first, 0.5), (second, -2.0)):
        total = torch.zeros(adapter.config.d)
        for j in range(adapter.config.d):
            with torch.no_grad():
                before = adapter.theta.clone()
                adapter.theta.zero_()[j] = 1.0
                total[j] = sum((adapter.delta(w.name) * grads[w.name]).sum() for w in adapter.plan.weights) * factor
                adapter.theta.copy_(before)
        expected.append(total)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-5)


def test_each_has_its_own_head_and_they_are_trained_apart() -> None:
    model, made = three()
    heads = {name: {key: value.clone() for key, value in made[name].saved_parameters().items()} for name in made}
    set_active(model, "one")
    optimizer = torch.optim.SGD([value for value in model.parameters() if value.requires_grad], lr=0.1)
    model(X).square().sum().backward()
    optimizer.step()
    set_active(model, "headed")
    assert torch.equal(model.head.weight, heads["headed"]["head.weight"])
    set_active(model, [])
    assert torch.equal(model.head.weight, build().head.weight)
    set_active(model, "one")
    assert not torch.equal(model.head.weight, heads["one"]["head.weight"])
    assert model.head.weight is made["one"].saved_parameters()["head.weight"]


def test_what_was_attached_and_loaded_in_inference_mode_is_trained(tmp_path: Path) -> None:
    shake(attach(build(), ONE, name="one"), 1).save(tmp_path)
    model = build()
    with torch.inference_mode():
        one = load_adapter(model, tmp_path)
        other = attach(model, BOTH, name="other")
        set_active(model, [])
        set_active(model, ["one", "other"])
    model.train()(X).sum().backward()
    assert all(value.grad is not None for value in (one.theta, other.theta, model.head.weight))
    assert not any(value.is_inference() for value in [*model.parameters(), *model.buffers()])
    with torch.inference_mode():  # also where the model itself is of it
        inside = build()
        load_adapter(inside, tmp_path)
        set_active(inside, [])
        set_active(inside, "one")
        assert torch.equal(inside(X), load_adapter(build(), tmp_path).model.eval()(X))


def test_a_further_adapter_of_inference_mode_has_a_head_that_is_trained() -> None:
    model = build()
    attach(model, ONE, name="one")
    with torch.inference_mode():
        other = attach(model, replace(ONE, seed=5), name="other")
    assert ONE.modules_to_save == ["head"]
    optimizer = torch.optim.SGD([value for value in model.parameters() if value.requires_grad], lr=0.1)
    before = {name: value.detach().clone() for name, value in other.saved_parameters().items()}
    model.train()(X).sum().backward()
    optimizer.step()
    assert not any(value.equal(before[name]) for name, value in other.saved_parameters().items())


def test_two_heads_of_one_name_are_chosen_between() -> None:
    model, made = three()
    before = bits(model)
    with pytest.raises(GPartError, match=r"'one' and 'headed' both have a head.bias .* heads='one' or heads='headed'"):
        set_active(model, ["one", "headed"])
    assert active_adapters(model) == {"headed": 1.0}
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    for chosen in ("one", "headed", "one"):
        set_active(model, ["one", "headed"], heads=chosen)
        assert torch.equal(model.head.weight, made[chosen].saved_parameters()["head.weight"])
    with pytest.raises(GPartError, match="heads='both' is none of the active adapters"):
        set_active(model, ["one", "headed"], heads="both")
    other = {"one": "headed", "headed": "one"}["one"]
    delete_adapter(model, "one")
    assert torch.equal(model.head.weight, made[other].saved_parameters()["head.weight"])


def test_the_chosen_head_may_be_named_anywhere_among_three() -> None:
    model, made = three()
    extra = shake(attach(model, HEADED, name="extra"), 5)
    for order in itertools.permutations(["one", "headed", "extra"]):
        set_active(model, order, heads="extra")
        assert model.head.weight is extra.saved_parameters()["head.weight"]
    with pytest.raises(GPartError, match=r"'one' and 'headed' both have a head\.(weight|bias)"):
        set_active(model, ["one", "both", "headed"], heads="both")
    assert not made["one"].saved_parameters()["head.weight"].requires_grad


def test_statistics_go_with_their_adapter(tmp_path: Path) -> None:
    model, made = three()
    first = {name: value.clone() for name, value in model.named_buffers() if "gpart" not in name}
    set_active(model, "one")
    model.train()(X * 3 + 1)
    model.eval()
    trained = model.norm.running_mean.clone()
    assert not torch.equal(trained, first["norm.running_mean"])
    set_active(model, "both")
    assert torch.equal(model.norm.running_mean, first["norm.running_mean"])
    assert torch.equal(made["one"].changed_buffers()["norm.running_mean"], trained)
    assert not made["both"].changed_buffers()
    made["one"].save(tmp_path / "one")
    fresh = build()
    load_adapter(fresh, tmp_path / "one")
    set_active(model, "one")
    assert torch.equal(model.norm.running_mean, trained)
    assert torch.equal(fresh(X), model(X))


@pytest.mark.parametrize("active", [True, False])
def test_loading_onto_an_attached_one_leaves_nothing_of_its_own_statistics(active: bool, tmp_path: Path) -> None:
    model, adapter = alone(ONE, 1)
    output = model(X)
    adapter.save(tmp_path)
    model.train()(X + 5)
    assert list(adapter.changed_buffers()) == ["norm.running_mean", "norm.running_var", "norm.num_batches_tracked"]
    if not active:
        set_active(model, [])
        assert adapter.changed_buffers()
    load_adapter(model, tmp_path)
    assert adapter.changed_buffers() == {}
    set_active(model, "default")
    assert torch.equal(model.eval()(X), output)


def test_an_inactive_adapter_is_saved_and_loaded_as_it_is(tmp_path: Path) -> None:
    model, made = three()
    set_active(model, "both")
    made["one"].save(tmp_path / "one")
    fresh = build()
    load_adapter(fresh, tmp_path / "one")
    set_active(model, "one")
    assert torch.equal(fresh(X), model(X))
    # into an inactive adapter of the same name
    set_active(model, "both")
    with torch.no_grad():
        made["one"].theta.zero_()
        for value in made["one"].saved_parameters().values():
            value.zero_()
    load_adapter(model, tmp_path / "one")
    assert active_adapters(model) == {"both": 1.0}
    set_active(model, "one")
    assert torch.equal(fresh(X), model(X))


def test_folders_of_one_name_are_loaded_under_others(tmp_path: Path) -> None:
    paths = []
    for number in range(3):
        _, adapter = alone(GPartConfig(d=7, target_modules=["one"], modules_to_save=["head"], seed=number), number)
        adapter.save(tmp_path / str(number))
        paths.append(tmp_path / str(number))
    model = build()
    for number, path in enumerate(paths):
        load_adapter(model, path, name=f"user-{number}")
    assert list(get_adapters(model)) == ["user-0", "user-1", "user-2"]
    for number, path in enumerate(paths):
        set_active(model, f"user-{number}")
        fresh = build()
        load_adapter(fresh, path)
        assert torch.equal(model(X), fresh(X))
    with pytest.raises(GPartError, match="different settings"):
        load_adapter(model, paths[0], name="user-1")


def test_a_refused_adapter_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    model, made = three()
    set_active(model, ["one", "both"], weights=[2.0, 0.5])
    before, output = bits(model), model(X)
    classes = [type(module) for module in model.modules()]
    flags = {name: value.requires_grad for name, value in model.named_parameters()}
    bad = build()
    with torch.no_grad():
        bad.two.weight.add_(1)
    attach(bad, ONE, name="fourth").save(tmp_path / "fourth")
    for attempt in (
        lambda: attach(model, ONE, name="one"),
        lambda: attach(model, GPartConfig(d=10**6, target_modules=["one"]), name="large"),
        lambda: attach(model, GPartConfig(d=1, target_modules=["nothing"]), name="none"),
        lambda: load_adapter(model, tmp_path / "fourth"),
        lambda: set_active(model, ["one", "gone"]),
        lambda: set_active(model, ["one", "one"]),
        lambda: set_active(model, ["one"], weights=[float("nan")]),
        lambda: set_active(model, ["one"], weights=[1.0, 2.0]),
        lambda: delete_adapter(model, "gone"),
        lambda: rename_adapter(model, "one", "both"),
        lambda: rename_adapter(model, "one", "a.b"),
    ):
        with pytest.raises(GPartError):
            attempt()
        assert active_adapters(model) == {"one": 2.0, "both": 0.5}
        assert list(get_adapters(model)) == list(made)
        assert [type(module) for module in model.modules()] == classes
        assert {name: value.requires_grad for name, value in model.named_parameters()} == flags
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
        assert torch.equal(model(X), output)


@pytest.mark.parametrize(
    "failing", ["gpart.adapter.Theta.__init__", "gpart.adapter.install", "gpart.materialize.active.add_hooks"]
)
@pytest.mark.parametrize("active", [None, [], ["one", "both"]])
def test_an_attach_that_fails_leaves_the_model_as_it_was(
    failing: str, active: list[str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build()
    model.two.bias.requires_grad_(False)
    if active is not None:
        model, _ = three()
        set_active(model, active)
    if active:
        model(X).sum().backward()
    before, output, classes = bits(model), model(X), [type(module) for module in model.modules()]
    gradients = [(value.requires_grad, value.grad) for value in model.parameters()]
    used = active_adapters(model)

    extra = replace(HEADED, modules_to_save=["head", "norm"])

    def full(*given: object) -> object:
        if any(isinstance(one, Plan) and "norm.weight" not in one.saved for one in given):
            return add_hooks(*given)  # those of the others, which are put back
        raise torch.OutOfMemoryError("out of memory")

    with monkeypatch.context() as broken:
        broken.setattr(failing, full)
        with pytest.raises(torch.OutOfMemoryError):
            attach(model, extra, name="extra")
    assert active_adapters(model) == used
    assert [type(module) for module in model.modules()] == classes
    now = [(value.requires_grad, value.grad) for value in model.parameters()]
    assert all(a == b and c is d for (a, c), (b, d) in zip(gradients, now, strict=True))
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert torch.equal(model(X), output)
    attach(model, extra, name="extra")


def test_a_root_that_takes_no_child_is_not_frozen() -> None:
    class Locked(Net):
        def add_module(self, name: str, module: nn.Module | None) -> None:
            raise RuntimeError("this module takes no more children")

    model = Locked()
    with pytest.raises(RuntimeError, match="no more children"):
        attach(model, ONE)
    assert all(value.requires_grad for value in model.parameters())


def test_a_refused_adapter_leaves_gradients_and_flags() -> None:
    model = build()
    first = attach(model, ONE)
    model.head.bias.requires_grad_(False)
    model(X).sum().backward()
    assert model.head.weight.grad is not None
    grad = model.head.weight.grad.clone()
    with pytest.raises(GPartError, match="nothing"):
        attach(model, GPartConfig(d=1, target_modules=["nothing"]), name="second")
    assert torch.equal(model.head.weight.grad, grad)
    assert first.theta.grad is not None
    assert not model.head.bias.requires_grad
    first.theta.requires_grad_(False)
    with pytest.raises(GPartError, match="nothing"):
        attach(model, GPartConfig(d=1, target_modules=["nothing"]), name="second")
    assert not first.theta.requires_grad


def test_what_is_refused_of_a_merged_model_leaves_it_merged() -> None:
    model, made = three()
    extra = shake(attach(model, HEADED, name="extra"), 5)
    set_active(model, ["extra", "one", "headed"], heads="extra")
    extra.merge()
    stored, output = bits(model), model(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for attempt in (
            lambda: set_active(model, ["one", "headed"]),
            lambda: delete_adapter(model, "extra"),  # one and headed have a head each, and none is chosen
        ):
            with pytest.raises(GPartError, match="both have a head"):
                attempt()
            assert made["one"].merged
            assert all(torch.equal(stored[key], value) for key, value in model.state_dict().items())
            assert torch.equal(model(X), output)


@pytest.mark.parametrize("call", ["detach", "merge_and_unload"])
@pytest.mark.parametrize("merged", [True, False])
def test_a_changed_class_is_refused_before_the_weights_are_touched(call: str, merged: bool) -> None:
    model, adapter = alone(BOTH, 1)
    if merged:
        adapter.merge()
    model.one.__class__ = type("Other", (type(model.one),), {})
    stored, output = bits(model), model(X)
    with pytest.raises(GPartError, match="one cannot be restored"):
        getattr(adapter, call)()
    assert adapter.merged == merged
    assert all(torch.equal(stored[key], value) for key, value in model.state_dict().items())
    assert torch.equal(model(X), output)


@pytest.mark.parametrize("gone", list(itertools.permutations(["one", "both", "headed"])))
@pytest.mark.parametrize("active", [[], ["one"], ["both", "headed"]])
def test_deleted_in_any_order_the_model_is_as_it_was(gone: tuple[str, ...], active: list[str]) -> None:
    model, _ = three()
    plain = build()
    set_active(model, active)
    for name in gone:
        left = [other for other in active_adapters(model) if other != name]
        delete_adapter(model, name)
        assert list(active_adapters(model)) == left
        model(X)
    assert not get_adapters(model)
    assert [type(module) for module in model.modules()] == [type(module) for module in plain.modules()]
    assert list(model.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in plain.state_dict().items())
    assert all(value.requires_grad for value in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_no_hooks_of_inactive_adapters() -> None:
    model, _ = three()
    set_active(model, [])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merged_is_what_was_computed_and_unmerged_the_base(dtype: torch.dtype) -> None:
    model, made = three(dtype)
    x = X.to(dtype)
    base = {key: value for key, value in bits(model).items() if key in dict(build().named_parameters())}
    set_active(model, ["both", "one"], weights=[0.5, -1.5])
    output = model(x)
    with pytest.raises(GPartError, match=r"'headed' is not active.*\['both', 'one'\]"):
        made["headed"].merge()
    made["one"].merge()
    assert {name: adapter.merged for name, adapter in made.items()} == {"one": True, "both": True, "headed": False}
    assert torch.equal(model(x), output)
    assert torch.equal(model.one.weight, model.one._parameters["weight"])
    with made["one"].disabled():
        half = model(x)
    fingerprints = {name: adapter.base_fingerprint() for name, adapter in made.items()}
    made["both"].unmerge()
    assert fingerprints == {name: adapter.base_fingerprint() for name, adapter in made.items()}
    assert torch.equal(model(x), output)
    with made["one"].disabled():
        assert torch.equal(model(x), half)
    assert all(torch.equal(bits(model)[key], base[key]) for key in base if not key.startswith("head"))
    made["one"].merge()
    with pytest.warns(UserWarning, match="it is unmerged before"):
        set_active(model, "both")
    assert all(torch.equal(bits(model)[key], base[key]) for key in base if not key.startswith("head"))


@pytest.mark.filterwarnings("error:.*was assigned")  # the head of the one is the other's layer
def test_a_layer_that_is_another_s_head_is_known_by_the_base_s_values_also_while_merged() -> None:
    model = build()
    shake(attach(model, ONE, name="one"), 1)
    other = shake(attach(model, replace(BOTH, target_modules=["one", "head"]), name="other"), 2)
    expected = other.base_fingerprint()
    set_active(model, ["one", "other"])
    assert other.base_fingerprint() == expected
    other.merge()
    assert other.base_fingerprint() == expected


def test_deleting_a_merged_one_leaves_the_others_exact() -> None:
    model, made = three()
    set_active(model, ["both", "one"])
    made["both"].merge()
    delete_adapter(model, "one")
    assert torch.equal(model(X), alone(BOTH, 1)[0](X))


def test_merge_and_unload_takes_all_off() -> None:
    model, made = three()
    set_active(model, ["both", "one"], weights=[0.5, 2.0])
    output = model(X)
    assert made["one"].merge_and_unload() is model
    assert torch.equal(model(X), output)
    assert [type(module) for module in model.modules()] == [type(module) for module in build().modules()]
    assert list(model.state_dict()) == list(build().state_dict())
    assert not made["both"].attached


def test_names_never_mix_in_keys(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)
            self.default = nn.Linear(4, 4)
            self.theta = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.theta(self.default(self.a(x)))

    torch.manual_seed(0)
    model = Odd()
    config = GPartConfig(d=3, target_modules=["a"], modules_to_save=["theta"])
    names = ["a", "default", "theta", "aa", "a-b", "2024", "saved"]
    made = [shake(attach(model, config, name=name), number) for number, name in enumerate(names)]
    keys = list(model.state_dict())
    assert len(keys) == len(set(keys))
    assert {f"gpart.{name}.theta" for name in names} <= set(keys)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for value in copied.parameters():
            value.zero_()
    copied.load_state_dict(model.state_dict())
    for name, adapter in zip(names, made, strict=True):
        set_active(model, name)
        set_active(copied, name)
        x = torch.ones(2, 4)
        assert torch.equal(model(x), copied(x))
        adapter.save(tmp_path / name)
        torch.manual_seed(0)
        fresh = Odd()
        assert load_adapter(fresh, tmp_path / name).name == name
        assert torch.equal(fresh(x), model(x))
    for bad in ("a.b", "", "a/b", "..", "-a", "keys", "training", "active_factors", "a" * 200, "a b", 3):
        with pytest.raises(GPartError, match="name"):
            attach(model, config, name=bad)


def test_renamed_in_keys_and_files(tmp_path: Path) -> None:
    model, made = three()
    set_active(model, ["one", "both"])
    output = model(X)
    assert rename_adapter(model, "one", "first") is made["one"]
    assert list(get_adapters(model)) == ["first", "both", "headed"]
    assert active_adapters(model) == {"first": 1.0, "both": 1.0}
    assert "gpart.first.theta" in model.state_dict()
    assert "gpart.one.theta" not in model.state_dict()
    assert torch.equal(model(X), output)
    made["one"].save(tmp_path / "first")
    assert load_adapter(build(), tmp_path / "first").name == "first"
    delete_adapter(model, "first")
    assert torch.equal(model(X), alone(BOTH, 1)[0](X))


def test_a_copy_and_a_pickle_are_models_of_their_own() -> None:
    model, _ = three()
    set_active(model, ["one", "both"], weights=[0.5, 2.0])
    output = model(X)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert active_adapters(other) == {"one": 0.5, "both": 2.0}
        assert torch.equal(other(X), output)
        set_active(other, "headed")
        with torch.no_grad():
            get_adapters(other)["one"].theta.zero_()
        assert torch.equal(model(X), output)
        assert torch.equal(other(X), alone(HEADED, 2)[0](X))


def test_cast_and_moved_an_inactive_head_follows() -> None:
    model, made = three()
    set_active(model, "both")
    model.to(torch.bfloat16)
    assert made["one"].theta.dtype == torch.float32
    assert made["one"].saved_parameters()["head.weight"].dtype == torch.bfloat16
    set_active(model, "one")
    assert model(X.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_of_a_sum(reentrant: bool) -> None:
    def grads(checkpointed: bool) -> list[Tensor]:
        model = build()
        config = GPartConfig(d=5, target_modules=["one", "two"], dropout=0.3)
        made = [shake(attach(model, config, name=name), number) for number, name in enumerate("ab")]
        set_active(model, ["a", "b"])
        model.train()
        model.norm.eval()
        torch.manual_seed(3)
        x = X.clone().requires_grad_()
        out = torch.utils.checkpoint.checkpoint(model, x, use_reentrant=reentrant) if checkpointed else model(x)
        out.square().sum().backward()
        return [adapter.theta.grad for adapter in made]

    for plain, again in zip(grads(checkpointed=False), grads(checkpointed=True), strict=True):
        assert torch.equal(plain, again)


def test_a_sum_is_computed_once_a_forward_pass_and_kept_within_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    from gpart.materialize import several

    class Twice(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.two.weight.sum()

    torch.manual_seed(0)
    model = Twice().eval()
    for number, name in enumerate("ab"):
        shake(attach(model, GPartConfig(d=5, target_modules=["two"], seed=number), name=name), number)
    set_active(model, ["a", "b"])
    calls = []
    plain = several.summed
    monkeypatch.setattr(several, "summed", lambda *a, **k: calls.append(1) or plain(*a, **k))
    with torch.no_grad():
        output = model(X)
        assert len(calls) == 1
        model(X)
        assert len(calls) == 2
        with get_adapters(model)["b"].cached():
            for _ in range(3):
                assert torch.equal(model(X), output)
            assert len(calls) == 3
            get_adapters(model)["a"].theta.add_(1)
            assert not torch.equal(model(X), output)
        calls.clear()
        assert not torch.equal(model(X), output)
        assert len(calls) == 1


@pytest.mark.parametrize("form", [pytest.param("compile", marks=needs_compiler), "vmap"])
def test_a_sum_under_compile_and_function_transforms(form: str) -> None:
    model, _ = three()
    set_active(model, ["both", "one"], weights=[0.5, 2.0])
    output = model(X)
    if form == "compile":
        found = torch.compile(model, backend="eager", fullgraph=True)(X)
    else:
        found = torch.func.vmap(lambda row: model(row.unsqueeze(0)).squeeze(0))(X)
    torch.testing.assert_close(found, output, rtol=1e-5, atol=1e-6)


def test_layers_that_do_not_overlap_and_tied_ones() -> None:
    torch.manual_seed(0)
    embedding, out = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)
    out.weight = embedding.weight
    model = nn.ModuleDict({"embedding": embedding, "out": out})
    base = embedding.weight.detach().clone()
    first = shake(attach(model, GPartConfig(d=3, target_modules=["embedding"]), name="first"), 0)
    second = shake(attach(model, GPartConfig(d=4, target_modules=["out"]), name="second"), 1)
    assert first.theta_name.split(".gpart")[0] == second.theta_name.split(".gpart")[0]
    set_active(model, ["first", "second"])
    expected = base + first.delta("embedding.weight") + second.delta("embedding.weight")
    torch.testing.assert_close(model["out"].weight, expected)
    assert torch.equal(model["out"].weight, model["embedding"].weight)
    set_active(model, "second")
    assert torch.equal(model["embedding"].weight, model["out"].weight)
    delete_adapter(model, "first")
    delete_adapter(model, "second")
    assert type(model["out"]) is nn.Linear
    assert torch.equal(model["out"].weight, base)
    assert model["out"].weight is model["embedding"].weight


def test_counted_in_pefts_words(capsys: pytest.CaptureFixture[str]) -> None:
    model, made = three()
    assert {name: adapter.num_parameters() for name, adapter in made.items()} == {"one": 34, "both": 11, "headed": 32}
    set_active(model, "one")
    made["one"].print_trainable_parameters()
    every = sum(value.numel() for value in model.parameters())
    assert capsys.readouterr().out == f"trainable params: 34 || all params: {every} || trainable%: {3400 / every:.4f}\n"


def test_attached_on_the_meta_device_and_filled_later() -> None:
    whole, _ = three()
    with torch.device("meta"):
        model = Net().eval()
    for name, config in {"one": ONE, "both": BOTH, "headed": HEADED}.items():
        attach(model, config, name=name)
    model.to_empty(device="cpu")
    model.load_state_dict(whole.state_dict())  # heads that do not stand in the model are among the keys
    for name in ("one", "both", "headed", []):
        set_active(whole, name)
        set_active(model, name)
        assert list(model.state_dict()) == list(whole.state_dict())
        if name in ("one", "headed"):
            assert torch.equal(model(X), whole(X)), name
        else:  # the base's own head was on the meta device, and had no values: that is seen
            assert torch.equal(model.two(X.new_ones(1, 8)), whole.two(X.new_ones(1, 8)))
            assert model(X).isnan().all()
    for name in ("headed", "one", "both"):
        delete_adapter(model, name)
    assert not get_adapters(model)


def test_what_was_in_a_sum_is_let_go_with_it() -> None:
    model, made = three()
    set_active(model, ["one", "both"])
    model(X)
    gone = weakref.ref(made.pop("both").weights)
    set_active(model, [])
    delete_adapter(model, "both")
    gc.collect()
    assert gone() is None


class Spectral(nn.Module):
    """A layer of a Fourier neural operator."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.ifft(torch.fft.fft(x) * self.weight).real


def test_a_complex_parameter_is_trained_and_stored(tmp_path: Path) -> None:
    def fresh() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 4), Spectral())

    x, net = torch.arange(8.0).view(2, 4), fresh()
    attach(net, GPartConfig(d=2, target_modules=["0"], modules_to_save=["1"]))
    second = attach(net, GPartConfig(d=2, target_modules=["0"], modules_to_save=["1"]), name="second")
    assert [name for name, value in net.named_parameters() if value.requires_grad] == [
        "0.gpart.second.theta",
        "1.weight",
    ]
    net(x).square().sum().backward()
    torch.optim.SGD([value for value in net.parameters() if value.requires_grad], lr=0.01).step()
    assert not net[1].weight.detach().equal(fresh()[1].weight)
    second.save(tmp_path)
    load_adapter(loaded := fresh(), tmp_path)
    assert loaded(x).equal(net(x))
