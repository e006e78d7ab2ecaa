"""``gpart export``: an adapter as another library's.

Invariant: what stands at OUT was loaded by that library, and computes what the numbers in it say.
"""

from __future__ import annotations

import argparse
import json
import math
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from gpart.bases.models import base_of, named_base, quiet
from gpart.cli.adapters import ADAPTER
from gpart.cli.attached import attach_to
from gpart.cli.folders import adapter_places, base_places, check_out, whole_folder
from gpart.cli.lora import Layer, as_layer, check_layers, peft_files, total_error
from gpart.cli.message import Parser
from gpart.cli.outputs import Inputs, largest_difference, largest_value, made_up_inputs, outputs_of
from gpart.errors import GPartError
from gpart.injection.names import get_parameter
from gpart.materialize.merging import check_mergeable
from gpart.serialization.authors import export_authors
from gpart.serialization.folder import CONFIG, TENSORS
from gpart.serialization.json_numbers import finite
from gpart.serialization.locations import located
from gpart.serialization.manifest import Manifest
from gpart.serialization.sources import fetched, read_adapter

DESCRIPTION = """Writes an adapter in another library's layout to the folder OUT.

  --to peft-lora  a LoRA of PEFT: P·theta of each layer cut to --rank by its singular values, and the heads. It is an
                  approximation, and the error by layer and in all is printed: 0 keeps all of the update, 1 none of it.
                  P·theta is of full rank, so that a low rank loses most of it; 'gpart merge' keeps all of it.
  --to authors    the folder of the authors' own code, for an adapter that was made by one of their schemes."""

TOLERANCE = 1e-4
"""How far PEFT's outputs may be from those of base + B·A, beside the largest output: some float32 roundings."""


def export_command(words: list[str]) -> int:
    """Writes the folder.

    Raises:
        GPartError: if the layout cannot hold the adapter, a setting is missing, or OUT is there already.
    """
    asked = _parser().parse_args(words)
    if asked.to == "authors":
        for name in ("base", "rank", "model_class", "no_check_base"):
            if getattr(asked, name) not in (None, False):
                raise GPartError(f"gpart export --to authors takes no --{name.replace('_', '-')}")
    elif asked.rank is None:
        raise GPartError("gpart export --to peft-lora needs --rank")
    source = fetched(asked.adapter)
    read = adapter_places(source)
    if asked.to == "authors":
        out = _check_out(asked, read)
        with whole_folder(out) as folder:
            export_authors(source, folder)
        if asked.json:
            print(json.dumps({"adapter": asked.adapter, "to": asked.to, "out": asked.out}, indent=2))
        else:
            print(f"written: {asked.out}")
        return 0
    manifest, tensors = read_adapter(source)
    read += base_places(named_base(manifest, asked.adapter) if asked.base is None else asked.base)
    out = _check_out(asked, read)
    with whole_folder(out) as folder:
        result = _lora(asked, source, manifest, tensors, folder)
    if asked.json:
        print(json.dumps(finite(result), indent=2, allow_nan=False))
    else:
        _print(result)
    return 0


def _check_out(asked: Any, read: list[Path]) -> Path:
    return check_out(asked.out, asked.force, (CONFIG,), (CONFIG, TENSORS), read)


def _lora(asked: Any, source: str, manifest: Manifest, tensors: dict[str, Tensor], folder: Path) -> dict[str, Any]:
    """Writes a LoRA of PEFT, and compares what PEFT makes of it.

    Returns:
        What is printed.

    Raises:
        GPartError: if LoRA cannot hold the adapter, or PEFT does not compute base + B·A.
    """
    # In float32, so that what PEFT computes can be told from a rounding; it does for a base in any dtype.
    base = base_of(asked.adapter, manifest, tensors, asked.base, dtype="float32", model_class=asked.model_class)
    adapter = attach_to(base, source, not asked.no_check_base)
    check_mergeable(adapter)
    check_layers(adapter)
    widest = max(min(weight.shape[0], math.prod(weight.shape[1:])) for weight in adapter.plan.weights)
    if not 1 <= asked.rank <= widest:
        raise GPartError(f"--rank must be from 1 to {widest}, the largest rank that a layer can have, got {asked.rank}")
    layers = [as_layer(adapter, weight, asked.rank) for weight in adapter.plan.weights]
    config, tensors = peft_files(adapter, layers, asked.rank, base.name)
    save_file({name: value.clone() for name, value in tensors.items()}, folder / TENSORS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / TENSORS).chmod((folder / CONFIG).stat().st_mode)
    result = {
        "adapter": asked.adapter,
        "base": base.name,
        "to": asked.to,
        "out": asked.out,
        "rank": asked.rank,
        "model": type(base.model).__name__,
        "error": total_error(layers),
        "parameters": {"gpart": adapter.config.d, "lora": sum(_size(layer) for layer in layers if not layer.is_bias)},
        "layers": [
            {"name": layer.name, "shape": list(layer.shape), "norm": layer.norm, "error": layer.error}
            for layer in layers
        ],
        "biases_in_full": sum(layer.is_bias for layer in layers),
    }
    try:
        inputs = made_up_inputs(base.model)
        adapted = outputs_of(base.model, inputs)
    except GPartError as error:
        return {**result, "outputs": None, "not_compared": str(error)}
    w0 = {layer.name: adapter.base_parameters()[layer.name].detach().clone() for layer in layers}
    model = adapter.merge_and_unload()
    return {**result, "outputs": _compared(model, layers, w0, folder, inputs, adapted)}


@torch.no_grad()
def _compared(
    model: nn.Module,
    layers: list[Layer],
    w0: dict[str, Tensor],
    folder: Path,
    inputs: Inputs,
    adapted: list[Tensor],
) -> dict[str, Any]:
    """What PEFT computes by the folder against base + B·A, and against the adapter.

    Raises:
        GPartError: if PEFT computes anything else than base + B·A.
    """
    from peft import PeftModel  # noqa: PLC0415  # seconds

    for layer in layers:
        stored = get_parameter(model, layer.name)
        stored.copy_((w0[layer.name].float() + layer.update).to(stored.dtype))
    cut = outputs_of(model, inputs)
    for name, value in w0.items():
        get_parameter(model, name).copy_(value)
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            loaded = PeftModel.from_pretrained(model, str(folder)).eval()
        except (ValueError, KeyError, RuntimeError, TypeError) as error:
            raise GPartError(f"PEFT cannot load what was written: {error}; nothing was written") from error
        found = outputs_of(loaded, inputs)
    largest, off = largest_value(cut), largest_difference(found, cut)
    if not off <= largest * TOLERANCE:
        raise GPartError(
            f"PEFT does not compute base + B·A on made-up {inputs}: the outputs, up to {largest:.3g}, differ by up to {off:.3g}."
            " A layer that is not called, whose weight is read elsewhere, PEFT leaves as it is: gpart merge keeps the"
            " update. Nothing was written"
        )
    return {
        "inputs": str(inputs),
        "largest": largest,
        "peft_from_base_and_product": off,
        "peft_from_adapter": largest_difference(found, adapted),
    }


def _size(layer: Layer) -> int:
    return sum(value.numel() for value in layer.tensors.values())


def _parser() -> Parser:
    parser = Parser(prog="gpart export", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter", metavar="ADAPTER", help=ADAPTER)
    parser.add_argument("out", metavar="OUT", help="the folder to write")
    parser.add_argument("--to", choices=["peft-lora", "authors"], required=True, help="the layout")
    parser.add_argument("--rank", type=int, metavar="R", help="LoRA's rank")
    parser.add_argument(
        "--base",
        metavar="BASE",
        help="the model that the adapter was trained on, as for 'gpart merge'; for LoRA; default: the one that it names",
    )
    parser.add_argument("--model-class", metavar="NAME", help="the class of Transformers; default: the first that fits")
    parser.add_argument("--no-check-base", action="store_true", help="take another base of the same shapes")
    parser.add_argument("--force", action="store_true", help="replace the adapter that is at OUT")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _print(result: dict[str, Any]) -> None:
    rows = [(layer["name"], "x".join(map(str, layer["shape"])), layer) for layer in result["layers"]]
    width, shapes = max(len(row[0]) for row in rows), max(5, *(len(row[1]) for row in rows))
    print(f"{'weight':<{width}}  {'shape':<{shapes}}  ‖P·theta‖   error")
    for name, shape, layer in rows:
        print(f"{name:<{width}}  {shape:<{shapes}}  {layer['norm']:>9.4f}  {layer['error']:>6.4f}")
    counts = result["parameters"]
    print(f"\nin all    error {result['error']:.4f} at rank {result['rank']}: ‖P·theta - B·A‖ / ‖P·theta‖")
    print(f"numbers   {counts['lora']:,} in A and B, {counts['gpart']:,} in theta; the heads beside them in both")
    if result["biases_in_full"]:
        print(f"biases    {result['biases_in_full']} in full, as bias='lora_only' of PEFT loads them")
    if (outputs := result["outputs"]) is None:
        print(f"outputs   not compared: {result['not_compared']}")
    else:
        print(f"outputs   on made-up {outputs['inputs']}: up to {outputs['largest']:.4g}; the largest difference")
        print(f"            of PEFT's from base + B·A: {outputs['peft_from_base_and_product']:.3g}")
        print(f"            of PEFT's from the adapter's: {outputs['peft_from_adapter']:.3g}")
    place = str(located(result["out"]))  # PEFT takes no URL
    print(f"written   {result['out']}: peft.PeftModel.from_pretrained(model, {place!r})")
