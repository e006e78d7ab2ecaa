"""``gpart merge``: the base and the adapter as one plain model, which needs no gpart.

Invariant: what stands at OUT was loaded again by its own library, and has the merged model's weights bit for bit.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from gpart.adapter import GPartAdapter
from gpart.bases.models import DTYPES, WEIGHTS, Base, base_of, load_again, named_base
from gpart.cli.adapters import ADAPTER
from gpart.cli.attached import attach_to
from gpart.cli.folders import adapter_places, base_places, check_out, whole_folder
from gpart.cli.message import Parser
from gpart.cli.outputs import Inputs, largest_difference, largest_value, made_up_inputs, outputs_of
from gpart.cli.written import WRITTEN, write_model
from gpart.errors import GPartError
from gpart.injection.tensors import same_bits
from gpart.materialize.merging import check_mergeable
from gpart.serialization.json_numbers import finite
from gpart.serialization.sources import fetched, read_adapter

DESCRIPTION = """Writes W0 + P·theta, summed in float32 and rounded once, and the trained heads as a plain model to the
folder OUT. It is a model of its own library (Transformers, timm, torch) and needs no gpart. Its outputs on made-up inputs
are compared with those of the base with the adapter, and those of the model that is loaded again from OUT."""

EPILOG = """BASE is a Transformers or timm folder, a name on the hub, packaged:NAME, timm:NAME, or python:MODULE:FUNCTION,
a function of yours that returns the base with its weights."""


@dataclass(frozen=True)
class Compared:
    """What came of comparing outputs."""

    inputs: str
    """What the model was called with."""

    update: float
    """The largest difference between outputs with the adapter's update and without it."""

    merged: float
    """The largest difference between outputs merged and with the adapter; 0 is to the bit."""

    again: float
    """The same between the merged model and the one that was loaded again."""

    largest: float
    """The largest magnitude in the outputs."""


def merge_command(words: list[str]) -> int:
    """Merges, checks and writes.

    Raises:
        GPartError: if the adapter does not fit the base, the base is packed, OUT is there already, or the folder does
            not give the merged model again; nothing is then at OUT.
    """
    asked = _parser().parse_intermixed_args(words)  # in any order with the options, though BASE may be left out
    source = fetched(asked.adapter)
    manifest, tensors = read_adapter(source)
    named = named_base(manifest, asked.adapter) if asked.base is None else asked.base
    read = (*base_places(named), *adapter_places(source))
    out = check_out(asked.out, asked.force, (WEIGHTS, "config.json"), WRITTEN, read)
    settings = {"dtype": asked.dtype, "model_class": asked.model_class}
    base = base_of(asked.adapter, manifest, tensors, asked.base, **settings)
    adapter = attach_to(base, source, not asked.no_check_base)
    check_mergeable(adapter)
    about = {
        "base": named,
        "model": type(base.model).__name__,
        "dtype": str(next(base.model.parameters()).dtype).removeprefix("torch."),
        "adapter": asked.adapter,
        "d": adapter.config.d,
        "D": adapter.size,
        "weights": len(adapter.plan.weights),
    }
    with whole_folder(out) as folder:
        compared, why_not = _merge(base, adapter, folder, asked.adapter)
        files = sorted(path.name for path in folder.iterdir())
    result = {**about, "out": asked.out, "files": files, "outputs": None if compared is None else asdict(compared)}
    if asked.json:
        told = result if why_not is None else {**result, "not_compared": why_not}
        print(json.dumps(finite(told), indent=2, allow_nan=False))
    else:
        _print(result, compared, why_not)
    return 0


def _merge(base: Base, adapter: GPartAdapter, folder: Path, source: str) -> tuple[Compared | None, str | None]:
    """Merges, writes, loads again and compares.

    Returns:
        What came of comparing outputs, or None and why they could not be compared.

    Raises:
        GPartError: if the folder does not give the merged model again.
    """
    model, inputs, why_not = base.model, Inputs(), None
    try:
        inputs = made_up_inputs(model)
        adapted = outputs_of(model, inputs)
    except GPartError as error:
        why_not = str(error)
    else:
        with adapter.disabled():
            without = outputs_of(model, inputs)
    adapter.merge_and_unload()
    write_model(base, folder, source)
    again = load_again(base, folder)
    if other := _differing(model, again):
        raise GPartError(
            f"the merged model is not the one that its own library loads again: {len(other)} tensors differ,"
            f" {', '.join(other[:3])}; nothing was written"
        )
    if why_not is not None:
        return None, why_not
    merged = outputs_of(model, inputs)
    return Compared(
        inputs=f"{inputs}",
        update=largest_difference(adapted, without),
        merged=largest_difference(merged, adapted),
        again=largest_difference(outputs_of(again, inputs), merged),
        largest=largest_value(merged),
    ), None


def _differing(first: nn.Module, second: nn.Module) -> list[str]:
    """The names of the tensors in which two models' states differ, in a bit, or because one lacks it."""
    mine, its = first.state_dict(), second.state_dict()
    return [
        name
        for name in dict.fromkeys([*mine, *its])
        if name not in mine or name not in its or not same_bits(mine[name], its[name])
    ]


def _parser() -> Parser:
    parser = Parser(prog="gpart merge", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument(
        "base",
        metavar="BASE",
        nargs="?",
        help="the model that the adapter was trained on; default: the one that it names",
    )
    parser.add_argument("adapter", metavar="ADAPTER", help=ADAPTER)
    parser.add_argument("out", metavar="OUT", help="the folder to write")
    parser.add_argument(
        "--dtype",
        choices=list(DTYPES),
        default="auto",
        help="of the base, and so of the merged model; default: auto, which is what the base's files hold",
    )
    parser.add_argument(
        "--model-class", metavar="NAME", help="the class of Transformers; default: the first that the adapter fits"
    )
    parser.add_argument(
        "--no-check-base", action="store_true", help="merge onto another base of the same shapes, with a warning"
    )
    parser.add_argument("--force", action="store_true", help="replace the model that is at OUT")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _print(result: dict[str, Any], compared: Compared | None, why_not: str | None) -> None:
    rows = [
        ("base", f"{result['base']} ({result['model']}, {result['dtype']})"),
        ("adapter", f"{result['adapter']} (d = {result['d']:,}, D = {result['D']:,}, {result['weights']} weights)"),
        ("merged", f"{result['out']}: {', '.join(result['files'])}"),
        ("weights", "loaded again from there: the same bit for bit"),
    ]
    if compared is None:
        rows.append(("outputs", f"not compared: {why_not}"))
    else:
        rows += [
            ("outputs", f"on made-up {compared.inputs}: up to {compared.largest:.4g}; the largest difference"),
            ("", f"  of the merged model from the base with the adapter: {_number(compared.merged)}"),
            ("", f"  of the model loaded again from the merged one: {_number(compared.again)}"),
            ("", f"  of the base with the adapter from the base without the update: {_number(compared.update)}"),
        ]
    for name, says in rows:
        print(f"{name:<8} {says}")


def _number(difference: float) -> str:
    return "0, bit for bit" if difference == 0 else f"{difference:.3g}"
