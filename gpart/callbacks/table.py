"""The table printed at the start of fit: what is adapted, what is trained, what a checkpoint will hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.optim import Optimizer

# Numbers that these keep beside each parameter; of others the table says nothing.
_MOMENTS = {"Adam": 2, "AdamW": 2, "NAdam": 2, "RAdam": 2, "Adamax": 2, "SGD": 0}


def print_table(
    title: str, rows: Mapping[str, str], network: nn.Module, frozen: int, kept: int, optimizers: Sequence[Optimizer]
) -> None:
    """Prints the method's rows, then trainable and frozen parameters and a checkpoint's bytes.

    Args:
        title: the method's name.
        rows: the method's own rows.
        network: the adapted module.
        frozen: its frozen numbers, of which a sharded one has a part only.
        kept: bytes that a checkpoint holds of the LightningModule.
        optimizers: the trainer's, whose state a full checkpoint holds too.
    """
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(justify="right")
    trained = sum(value.numel() for value in network.parameters() if value.requires_grad)
    every = {
        **rows,
        "trainable parameters": f"{trained:,}",
        "frozen parameters": f"{frozen:,}",
        "checkpoint, weights": readable_bytes(kept),
    }
    state = _state_bytes(optimizers)
    if state is not None:
        every["checkpoint, with optimizer state"] = readable_bytes(kept + state)
    for name, value in every.items():
        table.add_row(name, value)
    Console().print(table)


def kept_bytes(network: nn.Module) -> int:
    """Bytes of the trained parameters and the persistent buffers: what a checkpoint keeps of the network."""
    values = network.state_dict(keep_vars=True).values()
    return bytes_of(value for value in values if value.requires_grad or not isinstance(value, nn.Parameter))


def bytes_of(values: Iterable[Tensor]) -> int:
    """Bytes of tensors, each counted once.

    >>> import torch
    >>> value = torch.ones(3)
    >>> bytes_of([value, value])
    12
    """
    return sum(value.numel() * value.element_size() for value in {id(value): value for value in values}.values())


def readable_bytes(count: int) -> str:
    """A number of bytes with a fitting unit.

    Example:
        >>> readable_bytes(95_240), readable_bytes(3_500_000)
        ('95.2 kB', '3.5 MB')
    """
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def _state_bytes(optimizers: Sequence[Optimizer]) -> int | None:
    total = 0
    for optimizer in optimizers:
        moments = _MOMENTS.get(type(optimizer).__name__)
        if moments is None:
            return None
        for group in optimizer.param_groups:
            each = max(moments, 1 if group.get("momentum") else 0)
            sizes = (value.numel() * value.element_size() for value in group["params"] if value.requires_grad)
            total += each * sum(sizes)
    return total
