"""Each method's map and its singular values, against the code that trains and a dense Jacobian, in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from gpart import GPartConfig, attach, get_adapters
from gpart.callbacks import PeftCallback
from gpart.errors import GPartError
from gpart.studies.isometry.spectrum import Spectrum
from gpart.studies.isometry.vector import Trainable, find_trainable

WIDE, NARROW = 8, 6
PEFT = {
    "lora": ("LORA", {"r": 2, "lora_alpha": 6}),
    "lora, a rank above a side": ("LORA", {"r": 7, "lora_alpha": 7}),
    "vera": ("VERA", {"r": 5}),
    # Many of 48: pairs of conjugate frequencies, and such as are their own.
    "fourierft": ("FOURIERFT", {"n_frequency": 30, "scaling": 9.0}),
    "unilora": ("UNILORA", {"r": 3, "theta_d_length": 20}),
}
GPART = {
    "gpart": {},
    "gpart-non-isometric": {"isometric": False},
    "gpart-hash": {"projection": "hash"},
    "gpart-fastfood": {"projection": "fastfood"},
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDE, NARROW), nn.ReLU(), nn.Linear(NARROW, WIDE), nn.Linear(WIDE, 2))


def adapted(name: str) -> nn.Module:
    model = network()
    if name in GPART:
        attach(model, GPartConfig(d=37, target_modules=["0", "2"], modules_to_save=["3"], seed=3, **GPART[name]))
    else:
        kind, settings = PEFT[name]
        PeftCallback(kind, ["0", "2"], ["3"], settings).apply(model)
    return model


def trainable(model: nn.Module) -> tuple[Trainable, dict[str, nn.Parameter]]:
    found = find_trainable(model)
    named = dict(model.named_parameters())
    return found, {name: named[name] for name in found.names}


def real_update(model: nn.Module) -> Tensor:
    """What the method's own code adds to the weights."""
    if adapters := get_adapters(model):
        (adapter,) = adapters.values()
        return torch.cat([adapter.delta(f"{path}.weight").reshape(-1) for path in ("0", "2")]).detach()
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    return torch.cat([layer.get_delta_weight("default").reshape(-1) for layer in layers]).detach()


def move(parameters: dict[str, nn.Parameter]) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for value in parameters.values():
            value.normal_()


def every(spectrum: Spectrum) -> Tensor:
    """Each singular value as often as it is there, ascending."""
    return spectrum.values.repeat_interleave(spectrum.counts.round().long())


def dense(delta: Callable[[Tensor], Tensor], vector: Tensor) -> Tensor:
    jacobian = torch.autograd.functional.jacobian(delta, vector)
    found = torch.linalg.svdvals(jacobian).flip(0)
    return torch.cat([torch.zeros(len(vector) - len(found), dtype=torch.float64), found])


@pytest.mark.parametrize("name", [*GPART, *PEFT])
def test_the_map_is_what_the_methods_own_code_adds(name: str) -> None:
    model = adapted(name)
    found, parameters = trainable(model)
    trained = sum(value.numel() for key, value in model.named_parameters() if value.requires_grad and key[0] != "3")
    for step in range(2):
        vector = found.vector(parameters)
        assert len(vector) == trained
        update = found.map.delta(vector)
        assert len(update) == found.map.size == 2 * WIDE * NARROW
        torch.testing.assert_close(update, real_update(model).double(), rtol=1e-5, atol=1e-6)
        assert step == 0 or update.norm() > 0.1
        move(parameters)


@pytest.mark.parametrize("name", [*GPART, *PEFT])
@pytest.mark.parametrize("moved", [False, True])
def test_singular_values_are_a_dense_jacobians(name: str, moved: bool) -> None:
    model = adapted(name)
    found, parameters = trainable(model)
    if moved:
        move(parameters)
    vector = found.vector(parameters)
    wanted, spectrum = dense(found.map.delta, vector), found.map.spectrum(vector)
    direction = torch.randn(len(vector), dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(found.map.delta, vector)
    torch.testing.assert_close(found.map.push(vector, direction), jacobian @ direction)
    if spectrum is None:
        assert name in ("gpart-fastfood", "unilora")
        return
    # A zero of a Gram matrix is the square root of its rounding.
    torch.testing.assert_close(every(spectrum), wanted, rtol=1e-9, atol=1e-6 if "vera" in name else 1e-9)
    assert spectrum.length == len(vector)


@pytest.mark.parametrize(("name", "least", "largest"), [("gpart", 1.0, 1.0), ("gpart-non-isometric", 2**0.5, 3**0.5)])
def test_gparts_jacobian_by_its_own_code(name: str, least: float, largest: float) -> None:
    """Column by column from the adapter's delta: 96 weights in 37 groups of 2 or 3."""
    model = adapted(name)
    (adapter,) = get_adapters(model).values()
    columns = []
    for place in range(37):
        with torch.no_grad():
            adapter.theta.zero_()[place] = 1
        columns.append(real_update(model).double())
    found = torch.linalg.svdvals(torch.stack(columns, 1))
    assert found[-1].item() == pytest.approx(least, rel=1e-6)
    assert found[0].item() == pytest.approx(largest, rel=1e-6)


def test_what_a_bilinear_map_loses() -> None:
    found, parameters = trainable(adapted("lora"))
    both = WIDE + NARROW
    spectrum = found.map.spectrum(found.vector(parameters))
    assert spectrum is not None
    assert spectrum.zeros == 0.5  # B = 0: A moves nothing
    move(parameters)
    spectrum = found.map.spectrum(found.vector(parameters))
    assert spectrum is not None
    assert spectrum.zeros == pytest.approx(2 * 2**2 / (2 * 2 * both))  # r² for each layer


def test_frequencies_that_are_one_cosine() -> None:
    """All 48 of a layer: 4 are their own pair, of the other 44 half move nothing."""
    model = network()
    PeftCallback("FOURIERFT", ["0"], ["3"], {"n_frequency": 48, "scaling": 1.0}).apply(model)
    found, parameters = trainable(model)
    spectrum = found.map.spectrum(found.vector(parameters))
    assert spectrum is not None
    assert spectrum.zeros == 22 / 48
    assert (spectrum.least, spectrum.largest) == (pytest.approx(48**-0.5), pytest.approx(48**-0.5))


def test_an_empty_group_moves_nothing() -> None:
    model = network()
    attach(model, GPartConfig(d=48, target_modules=["0"], modules_to_save=["3"], projection="hash"))
    found, parameters = trainable(model)
    spectrum = found.map.spectrum(found.vector(parameters))
    assert spectrum is not None
    assert 0.2 < spectrum.zeros < 0.6
    assert spectrum.condition == 1


def test_what_has_no_map_is_refused() -> None:
    with pytest.raises(GPartError, match="has no adapter"):
        find_trainable(network())
    model = network()
    PeftCallback("IA3", ["0"], ["3"], {"feedforward_modules": []}).apply(model)
    with pytest.raises(GPartError, match="PEFT's lora, vera, fourierft, unilora, the network has ia3"):
        find_trainable(model)
    model = network()
    PeftCallback("LORA", ["0"], ["3"], {"r": 2, "use_dora": True}).apply(model)
    with pytest.raises(GPartError, match="plain LoRA"):
        find_trainable(model)
