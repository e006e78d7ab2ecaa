"""What an adapter puts into a model: one small child that holds theta, and layers that read W0 + P·theta as their weight.

Invariants: theta exists once, in :class:`Theta`, the last child of the adapted module, or of a module below it where that
one is a container (:func:`gpart.injection.homes.home_of`); every layer reaches it through
that child at every use, never by a reference of its own, since ``to_empty``, ``.to("meta")`` and sharding replace the
Parameter object. An adapted layer keeps its parameters under their names, so that a state_dict has the base's keys:

    layer.weight                   W0 + P·theta, computed when it is read
    layer._parameters["weight"]    W0, what is stored, moved, saved and loaded

A layer is adapted by a subclass of its own class that has a property for each adapted attribute. ``torch.nn.utils.
parametrize`` does the like, but moves the parameter to another name, and takes 20 µs more for a read (measured).
"""

from __future__ import annotations

import copyreg
import re
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gpart.errors import GPartError
from gpart.injection.names import READERS, stored
from gpart.injection.recurrent import UPKEEP, is_recurrent, overrides
from gpart.injection.targets import AdaptedWeight
from gpart.injection.tensors import dense, is_packed, same_bits

_MOVERS = ("torch.distributed.", "accelerate.", "torch.nn.modules.module", "gpart.injection.heads")
"""Who asks a layer for its parameters by their names, and puts others there: FSDP 1 and 2, offloading,
``Module.get_parameter``, and a switch from one adapter's head to another's. They get and give W0."""

_REBUILDERS = tuple(f"torch.nn.utils.{name}" for name in ("weight_norm", "spectral_norm", "parametrize", "prune"))
"""Who makes parameters of their own of a weight, and the weight of these. Before attach they may."""

CONTAINER = "gpart"
"""Name of the child that holds the adapters of a module; in a folder theta's key is ``gpart.<adapter name>.theta``."""

SAVED = "saved"
"""Name of the child of theta's holder with what of the adapter does not stand in the model while another one is active."""

BASE = "__base__"
"""What stands for no adapter where adapters are named, as in PEFT."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,127}|[^\W\d]\w{0,127}")


def check_name(name: object) -> str:
    """An adapter's name, if it can be one: it stands in keys, and beside the attributes of the module that holds adapters.

    Raises:
        GPartError: if it cannot.

    Example:
        >>> check_name("user-17")
        'user-17'
        >>> check_name("a.b")
        Traceback (most recent call last):
            ...
        gpart.errors.GPartError: an adapter's name consists of letters, digits, '_' and '-' (128 at most), and is no attribute of torch's ModuleDict; got 'a.b'
    """
    fits = isinstance(name, str) and _NAME.fullmatch(name)
    if not fits or not isinstance(name, str) or name in {BASE, *vars(Adapters({}))} or hasattr(Adapters, name):
        raise GPartError(
            "an adapter's name consists of letters, digits, '_' and '-' (128 at most), and is no attribute of torch's"
            f" ModuleDict; got {name!r}"
        )
    return name


class WeightReader(Protocol):
    """What gives a layer its weight: :class:`gpart.materialize.weights.Weights`."""

    def read(self, weight: AdaptedWeight, base: Tensor, training: bool) -> Tensor:
        """W from W0, in the shape and dtype of ``base``."""


class Adapters(nn.ModuleDict):
    """The last child of the module that holds theta: its adapters by name, and which of them are active.

    Attributes:
        active_factors: by name, what the update of each active adapter is multiplied by in the weights.
        standing: by parameter of ``modules_to_save``, the active adapter whose values stand in the model; the base's else.
        heads: the adapter whose values were chosen where several active ones have the same saved module.
        open_batch: whose rows the batch is of that is open, see :meth:`gpart.adapter.GPartAdapter.batch`; else empty.
    """

    _gpart_holds_adapters = True

    def __init__(self, modules: Mapping[str, Theta]) -> None:
        super().__init__(modules)
        self.active_factors: dict[str, float] = {}
        self.standing: dict[str, str] = {}
        self.heads: str | None = None
        self.open_batch: tuple[str, ...] = ()
        self._of_base: str | None = None
        self.register_load_state_dict_post_hook(_leave_theta)  # type: ignore[no-untyped-call]  # torch has no types here

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        # A base's own weights may be loaded after attach, as a project's setup does: theta belongs to what is there then.
        self._of_base = prefix if not any(key.startswith(prefix) for key in state) else None
        super()._load_from_state_dict(state, prefix, *rest)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Is called where a module's own code runs all its children in turn.

        Raises:
            GPartError: always, since the outputs would not be those of the base any more.
        """
        raise GPartError(
            f"adapter {next(iter(self), None)!r} was called: the module that holds it runs all its children in turn, and"
            " the adapter is one of them. Adapt a module below it, or keep the layers in a ModuleList or a Sequential"
        )


def _leave_theta(adapters: Adapters, incompatible: Any) -> None:
    """Lets a base's state be loaded strictly: it has no theta, and theta stays as it is."""
    prefix, adapters._of_base = adapters._of_base, None
    if prefix is None:
        return
    incompatible.missing_keys[:] = [key for key in incompatible.missing_keys if not key.startswith(prefix)]
    thetas = {name: value for name, value in adapters.named_parameters() if name.endswith("theta")}
    if trained := [name for name, value in thetas.items() if not value.is_meta and bool(value.detach().any())]:
        warnings.warn(
            f"the state that was loaded has no {prefix}{trained[0]}: the weights in it are the base's now, and theta, which"
            " is not 0, stays as it is",
            stacklevel=2,
        )


class Theta(nn.Module):
    """Holds theta, shape (d,), float32 or wider whatever the model is cast to.

    ``adapter`` is no submodule: it knows the model, and the model knows this module.
    """

    theta: nn.Parameter

    plain: Callable[[nn.Parameter], Tensor] | None = None
    """What makes a plain tensor of theta, where a sharding strategy has put a DTensor in its place."""

    def __init__(self, d: int, device: torch.device | None, adapter: Any) -> None:
        super().__init__()
        wide = torch.promote_types(torch.get_default_dtype(), torch.float32)
        with torch.inference_mode(mode=False):  # what is made within it can never be trained
            self.theta = nn.Parameter(torch.zeros(d, dtype=wide, device=device))
        self.adapter = adapter

    def values(self) -> Tensor:
        """Theta as the layers compute with it: a plain tensor, whose gradient reaches the parameter."""
        return self.theta if self.plain is None else self.plain(self.theta)

    def reset_parameters(self) -> None:
        """Theta = 0; Lightning and FSDP call this after a module was made on the meta device."""
        nn.init.zeros_(self.theta)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Theta:
        # Lightning's bf16-true casts every parameter after setup; casting back later is too late for DDP.
        def kept_wide(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if moved.is_floating_point() and moved.dtype != torch.promote_types(moved.dtype, torch.float32):
                return tensor.to(device=moved.device, dtype=torch.float32)
            return moved

        before = self._parameters.get("theta")
        device = None if before is None else before.device  # FSDP 1 keeps it in a flat parameter of its own
        for child in self.children() if recurse else ():
            child._apply(fn)  # type: ignore[no-untyped-call]  # a head that does not stand in the model is of the model's dtype all the same
        super()._apply(kept_wide, recurse=False)  # type: ignore[no-untyped-call]  # torch has no types here
        after = self._parameters.get("theta")
        if device is not None and after is not None and after.device != device:
            self.adapter.weights.leave_device()
        return self

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """Nothing while the model is merged: its state is a plain model's, and theta would change the weights twice."""
        if self.adapter.weights.bases is not None:
            return OrderedDict() if destination is None else destination
        return super().state_dict(*args, destination=destination, prefix=prefix, keep_vars=keep_vars)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        if self.adapter.weights.bases is None:
            super()._load_from_state_dict(state, prefix, *rest)
        elif f"{prefix}theta" in state:
            rest[-1].append(  # torch's error messages
                f"{prefix}theta is an adapter's, and adapter {self.adapter.name!r} is merged here: unmerge() before its"
                " state is loaded"
            )

    def extra_repr(self) -> str:
        """Shows d in the model's printed form."""
        return f"d={self.theta.numel()}"


def theta_of(home: nn.Module, name: str) -> Tensor:
    """Theta of an attached adapter, as the layers compute with it; found anew at every use, see above.

    Args:
        home: the module whose child holds it, see :func:`gpart.injection.homes.home_of`.
        name: the adapter's name.
    """
    holder: Any = home._modules[CONTAINER]._modules[name]  # type: ignore[union-attr]  # it is there while attached
    theta: Tensor | None = holder._parameters.get("theta")  # what Module.__getattr__ would find, without its call
    return holder.values() if theta is None or holder.plain is not None else theta


def theta_key(name: str) -> str:
    """Theta's key in a folder, wherever it stands in the model.

    >>> theta_key("default")
    'gpart.default.theta'
    """
    return f"{CONTAINER}.{name}.theta"


Readers = dict[str, tuple[WeightReader, AdaptedWeight]]
"""By attribute of a layer, who computes it, and which weight it is."""


def set_readers(module: nn.Module, readers: Readers) -> None:
    """Makes a layer read these of its parameters from these readers; with none it gets its own class back."""
    before = module.__dict__.get(READERS, {})
    if not readers:
        module.__class__ = plain_class(module)
        module.__dict__.pop(READERS, None)
        return
    if tuple(before) != tuple(readers):
        module.__class__ = _adapted_class(plain_class(module), tuple(readers))
    module.__dict__[READERS] = readers


def check_releasable(module: nn.Module, path: str) -> None:
    """Checks that a layer is still of the class that :func:`adapt` gave it.

    Raises:
        GPartError: if something has changed its class since, with both classes.
    """
    if parametrize.is_parametrized(module):
        others = list(module.parametrizations)  # type: ignore[arg-type]  # a ModuleDict
        name = f"{path}.{next(iter(module.__dict__[READERS]))}"
        raise GPartError(f"{name} cannot be restored: {others} are parametrized too")
    if type(module).__dict__.get("_gpart_plain") is None:
        raise GPartError(
            f"{path} cannot be restored: it was {plain_class(module).__name__}, and something has made it"
            f" {type(module).__name__} since the adapter was attached"
        )


def plain_class(module: nn.Module) -> type[nn.Module]:
    """The class that a layer has without an adapter.

    Example:
        >>> plain_class(nn.Linear(2, 2)).__name__
        'Linear'
    """
    found: type[nn.Module] = getattr(type(module), "_gpart_plain", type(module))
    return found


_made: dict[tuple[object, tuple[str, ...]], type[nn.Module]] = {}


def _adapted_class(plain: type[nn.Module], attributes: tuple[str, ...]) -> type[nn.Module]:
    """The subclass of a layer's class that computes these attributes; one for all layers, so that copies agree."""
    if (plain, attributes) not in _made:
        _made[plain, attributes] = _make_class(plain, attributes)
    return _made[plain, attributes]


class _Unannounced(nn.Module):
    """Stands before a layer's own class, so that its ``__init_subclass__``, as registries have it, is not called."""

    def __init_subclass__(cls, **settings: Any) -> None:
        pass


def _make_class(plain: type[nn.Module], attributes: tuple[str, ...]) -> type[nn.Module]:

    def reduce_ex(self: nn.Module, protocol: Any) -> Any:
        # pickle and deepcopy: the class has no importable name, so it is made again from those that have.
        made = plain.__reduce_ex__(self, protocol)
        if type(self) is adapted and isinstance(made, tuple) and made[0] is copyreg.__newobj__:  # type: ignore[attr-defined]
            return (_new, (plain, attributes), *made[2:])
        return made

    def load(self: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        # Before 0.2 the parameters had the names that torch's parametrizations give them.
        for attribute in attributes:
            if (old := f"{prefix}parametrizations.{attribute}.original") in state:
                state[prefix + attribute] = state.pop(old)
        plain._load_from_state_dict(self, state, prefix, *rest)

    def remove(self: nn.Module, name: str) -> None:
        if name in attributes and name in self._parameters:
            _refuse_rebuilding(self, name, sys._getframe(1))
        plain.__delattr__(self, name)

    def register(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        # What sets an attribute stands behind Module.__setattr__.
        frame = sys._getframe(1)
        above = frame.f_back if frame.f_code is nn.Module.__setattr__.__code__ else frame
        if name in attributes and above is not None and not _module_of(above).startswith(movers):
            _tell_assigned(self, name, param)
        plain.register_parameter(self, name, param)

    recurrent = is_recurrent(plain)
    movers = (*_MOVERS, UPKEEP) if recurrent else _MOVERS
    namespace: dict[str, Any] = {attribute: _weight_property(attribute, movers) for attribute in attributes}
    namespace |= overrides() if recurrent else {}
    namespace |= {"__reduce_ex__": reduce_ex, "_load_from_state_dict": load, "_gpart_plain": plain}
    namespace |= {"register_parameter": register, "__delattr__": remove}
    namespace |= {"__module__": plain.__module__, "__doc__": plain.__doc__}
    adapted = type(f"GPart{plain.__name__}", (_Unannounced, plain), namespace)
    return adapted


def _new(plain: type[nn.Module], attributes: tuple[str, ...]) -> nn.Module:
    cls = _adapted_class(plain, attributes)
    return cls.__new__(cls)


def _tell_assigned(layer: nn.Module, attribute: str, value: nn.Parameter | None) -> None:
    """Warns where a value takes the place of W0 that was made of W0 + P·theta, as fusing and quantising do."""
    base = layer._parameters.get(attribute)
    if base is None or value is base or attribute not in layer.__dict__.get(READERS, {}):
        return  # nothing is there yet, or it is W0 again, as tie_weights puts it
    if base.is_meta or not (type(base) in (Tensor, nn.Parameter) or is_packed(base)):
        return  # no numbers that can be compared, such as a fake tensor's
    reader, weight = layer.__dict__[READERS][attribute]
    with torch.no_grad():
        if same_bits(reader.read(weight, base, False), dense(base)):
            return
    warnings.warn(
        f"{weight.name} was assigned: the value is the new W0, and P·theta is still added to it. If it was computed from the"
        " layer's weight, as by fusing or quantising, the update counts twice: merge() before, or work within"
        " adapter.disabled()",
        stacklevel=4,
    )


def _refuse_rebuilding(layer: nn.Module, attribute: str, asking: FrameType) -> None:
    """Refuses tools that put parameters of their own in a weight's place: theta would not reach it, or count twice.

    Raises:
        GPartError: if one of them asks; the layer is then as it was.
    """
    if (tool := _module_of(asking)) in _REBUILDERS and attribute in layer.__dict__.get(READERS, {}):
        weight = layer.__dict__[READERS][attribute][1]
        raise GPartError(
            f"{tool} cannot take the place of {weight.name}, which is adapted: apply it before attach, and name what it makes"
            " of the weight in target_parameters; or merge_and_unload() first"
        )


def _module_of(frame: FrameType) -> str:
    """The module that a frame's code stands in."""
    return frame.f_globals.get("__name__") or ""


def _weight_property(attribute: str, movers: tuple[str, ...]) -> property:
    def get(self: nn.Module) -> Tensor:
        base: Tensor | None = self._parameters.get(attribute)
        if base is None:
            base = stored(self, attribute)
        # By the caller's module: torch's sharding asks from hooks of its own, at any time and in any thread.
        if not torch.compiler.is_compiling():
            asking = sys._getframe(1)
            if _module_of(asking).startswith(movers):
                return base
            if asking.f_code.co_name == "apply":
                _refuse_rebuilding(self, attribute, asking)
        reader, weight = self.__dict__[READERS][attribute]
        try:
            value: Tensor = reader.read(weight, base, self.training)
        except AttributeError as error:
            # Python would ask Module.__getattr__ next, which gives W0.
            raise RuntimeError(f"W0 + P·theta of {weight.name} could not be computed: {error}") from error
        return value

    def put(self: nn.Module, value: Tensor) -> None:
        # torch sets Parameters past this. Plain tensors come from FSDP 1 and DataParallel, and stand in for W0.
        self.__dict__[attribute] = value

    def delete(self: nn.Module) -> None:
        del self.__dict__[attribute]

    return property(get, put, delete)
