"""Which submodule of a LightningModule a method adapts.

Invariant: where two networks could be meant, nothing is chosen in silence: an adapter that is attached elsewhere in the
module is never gone on with in place of another network, and the error names both.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from lightning.pytorch import LightningModule
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import nn

from gpart.adapter import find_adapters
from gpart.config import GPartConfig
from gpart.errors import GPartError
from gpart.injection.attention import QUERY_VALUE, has_query_value
from gpart.injection.layers import is_linear
from gpart.injection.matching import ALL_LINEAR, matches
from gpart.injection.names import get_submodule, named_modules, named_parameters, unwrapped


def find_network(pl_module: LightningModule, path: str | None, copies: Collection[str] = ()) -> tuple[str, nn.Module]:
    """The submodule to adapt and its path.

    Args:
        pl_module: the LightningModule.
        path: asked for by the user; None for the only child that has parameters, else the whole.
        copies: paths of copies of it, which are not meant themselves.

    Raises:
        GPartError: if there is no submodule of that name, or copies of the whole are asked for.
    """
    if path is not None:
        return path, submodule(pl_module, path, "module")
    children = [
        (name, unwrapped(child))
        for name, child in pl_module.named_children()
        if any(True for _ in child.parameters()) and name not in copies
    ]
    # A child that is a layer itself is no network: its own name would have to be left out of the patterns.
    network = len(children) == 1 and any(True for _ in children[0][1].children())
    whole = not network or any(True for _ in pl_module.parameters(recurse=False))
    if whole and copies:
        raise GPartError(
            f"copies={list(copies)} of which network? Besides, {type(pl_module).__name__} has"
            f" {[name for name, _ in children]}: name one, as in module='student'"
        )
    return ("", pl_module) if whole else children[0]


def tell_frozen(pl_module: LightningModule, own: list[str], children: list[str]) -> None:
    """Warns where parameters of the LightningModule itself are frozen that may be no part of the network.

    Args:
        pl_module: the LightningModule, all of which was taken for the network.
        own: the names of its parameters that were trained before.
        children: the names of its children that may be networks.
    """
    frozen = [name for name in own if not pl_module.get_parameter(name).requires_grad]
    if frozen and len(children) == 1:
        rank_zero_warn(
            f"{frozen} of {type(pl_module).__name__} is frozen: since it has parameters of its own, all of it is taken for the"
            f" network. If {children[0]!r} is the network, say module={children[0]!r}; what stands beside it is then trained"
            " as before"
        )


def tell_frozen_children(
    pl_module: LightningModule, trained: Collection[str], adapted: Collection[str], saved: Collection[str]
) -> None:
    """Warns where a head beside the network, or whatever else stands there, is frozen with it.

    Args:
        pl_module: the LightningModule, all of which was taken for the network.
        trained: the names of its parameters that were trained before.
        adapted: the names of the adapted ones.
        saved: the names of those that are trained in full.
    """
    networks = sorted(children_of(adapted))
    if len(networks) != 1 or not any(True for _ in get_submodule(pl_module, networks[0]).children()):
        return  # it is the network itself, or several are meant
    others = children_of(trained) - children_of(saved) - {*networks}
    frozen = sorted(
        child for child in others if not any(one.requires_grad for one in get_submodule(pl_module, child).parameters())
    )
    if frozen:
        rank_zero_warn(
            f"{frozen} of {type(pl_module).__name__}, which were trained, are frozen: nothing in them is adapted, and"
            f" modules_to_save does not name them. Name them there, or say module={networks[0]!r} if that alone is the network"
            " (what stands beside it is then trained as before), or module='' if they are to be frozen"
        )


def refuse_frozen_beside(pl_module: LightningModule, adapted: Collection[str], saved: Collection[str]) -> None:
    """Checks that a network which the project has frozen is not changed because its layers have the same names.

    Args:
        pl_module: the LightningModule, all of which is taken for the network; its flags as the project has set them.
        adapted: the names of the parameters that would be adapted.
        saved: the names of those that would be trained in full. A trained head beside a frozen network is as it should be.

    Raises:
        GPartError: if a child that is frozen has some of them, and one that is trained has adapted ones; with both.
    """
    first, either = children_of(adapted), children_of([*adapted, *saved])
    children = {name: child for name, child in pl_module.named_children() if name in either}
    frozen = [name for name, child in children.items() if not any(one.requires_grad for one in child.parameters())]
    if frozen and (trained := [name for name in children if name in first and name not in frozen]):
        raise GPartError(
            f"the settings mean layers of {trained} and of {frozen}, which {type(pl_module).__name__} has frozen: say"
            f" module={trained[0]!r} to leave {frozen[0]!r} as it is (a teacher, a loss), copies={frozen} besides where it"
            " follows (an average), or module='' to adapt all of them"
        )


def children_of(names: Iterable[str]) -> set[str]:
    """The children of a module in which what has these names lies.

    >>> children_of(["scale", "net.0.weight", "net.0.bias"])
    {'net'}
    """
    return {name.partition(".")[0] for name in names if "." in name}


def submodule(pl_module: LightningModule, path: str, argument: str) -> nn.Module:
    """The submodule that an argument of a callback names.

    Raises:
        GPartError: if there is none, with the argument and the names that there are.
    """
    try:
        return get_submodule(pl_module, path)
    except AttributeError:
        names = [name for name, _ in pl_module.named_children()]
        raise GPartError(
            f"{argument}={path!r} is no submodule of {type(pl_module).__name__}, which has {names}"
        ) from None


def find_attached(
    pl_module: LightningModule, name: str, config: GPartConfig | None, copies: Collection[str] = ()
) -> tuple[str, nn.Module] | None:
    """The network that carries an adapter of this name already, where no other can be meant.

    Args:
        pl_module: the LightningModule.
        name: the adapter's name.
        config: the settings by which another network could be meant.
        copies: paths of copies of the network, which are not meant themselves.

    Returns:
        Its path and itself; None where no adapter of this name is attached.

    Raises:
        GPartError: if another network could be meant, with both.
    """
    attached = [(path, one.model) for path, one in find_adapters(pl_module) if one.name == name and path not in copies]
    if not attached:
        return None
    found = find_network(pl_module, None, copies)
    if any(found[1] is model for _, model in attached):
        return found
    others = _other_networks(pl_module, [path for path, _ in attached], config)
    if len(attached) == 1 and not others:
        return attached[0]
    first = attached[0][0]
    other = others[0] if others else attached[1][0]
    raise GPartError(
        f"which network is meant? {[path for path, _ in attached]} of {type(pl_module).__name__} carries an adapter"
        f" {name!r} already, and {other!r} could be adapted as well: say module={first!r} to go on with the adapter that"
        f" is there, or module={other!r} to adapt that one"
    )


def _other_networks(pl_module: LightningModule, attached: list[str], config: GPartConfig | None) -> list[str]:
    """The children, but for the adapted ones, that have layers which the settings mean."""
    names = [name for name, _ in pl_module.named_children()]
    inside = {path.partition(".")[0] for path in attached}
    return [
        name
        for name in names
        if name not in inside and config is not None and _has_targets(get_submodule(pl_module, name), config)
    ]


def _has_targets(network: nn.Module, config: GPartConfig) -> bool:
    """Whether a pattern means a layer below this module, or a parameter in it; its own layer is no network."""
    modules = named_modules(network)
    layers = [(path, one) for path, one in modules if path and any(True for _ in one.parameters(recurse=False))]
    if config.target_modules == ALL_LINEAR:
        found = any(is_linear(layer) for _, layer in layers)
    elif config.target_modules == QUERY_VALUE:
        found = has_query_value(network)
    else:
        found = any(matches(path, config.target_modules) for path, _ in layers)
    return found or any(matches(name, config.target_parameters) for name in named_parameters(network))
