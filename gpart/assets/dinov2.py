"""Makes a Hugging Face folder of the DINOv2 ViT-S/14 inside an ONNX file that PyTorch exported.

Invariant: ``model.safetensors`` holds exactly the names, shapes and type of ``shapes()``, or nothing is written.

PyTorch's exporter keeps a parameter's name where the graph uses the parameter as it is. The matrices of linear layers
lose theirs, since the graph holds them transposed, and so do the two parts into which the position embeddings were
cut; these are found by the nodes that use them, whose names are the modules' paths.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

HIDDEN, LAYERS, HEADS, RATIO, PATCH, IMAGE = 384, 12, 6, 4, 14, 518
"""ViT-S/14 as Meta trained it: its position embeddings are those of 518 x 518 pixels, and adapted to other sizes."""

_PREFIX = "backbone."
_EMBEDDINGS = "/backbone/embeddings/"

CONFIG: dict[str, Any] = {
    "architectures": ["Dinov2Model"],
    "model_type": "dinov2",
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "mlp_ratio": RATIO,
    "patch_size": PATCH,
    "image_size": IMAGE,
    "num_channels": 3,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "layerscale_value": 1.0,
    "qkv_bias": True,
    "use_mask_token": True,
    "use_swiglu_ffn": False,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "drop_path_rate": 0.0,
    "initializer_range": 0.02,
    "dtype": "float32",
}
"""``config.json``: everything that bears on the result, since a library's defaults may change."""

PREPROCESSOR: dict[str, Any] = {
    "image_processor_type": "BitImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"shortest_edge": 256},
    "resample": 3,  # bicubic
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
"""``preprocessor_config.json``, as published with DINOv2."""


@dataclass(frozen=True)
class Node:
    """What is read of a node of the graph."""

    kind: str
    """The operator, for example ``MatMul``."""
    name: str
    """The path of the module that it comes from, and the operator."""
    inputs: tuple[str, ...]
    """The names of tensors and of other nodes' outputs."""


@dataclass(frozen=True)
class Graph:
    """What is read of an ONNX file."""

    tensors: dict[str, NDArray[Any]]
    """The stored tensors."""
    nodes: tuple[Node, ...]
    """The operations, in their order."""


def convert(source: Path, folder: Path) -> None:
    """Writes ``model.safetensors``, ``config.json`` and ``preprocessor_config.json``.

    Args:
        source: the ONNX file.
        folder: where to; it exists.

    Raises:
        ValueError: the file can't be read, or its tensors are not those of DINOv2 ViT-S/14; nothing is written.
    """
    tensors = state(read(source))
    _check(tensors, source)
    # "format" says to Transformers that the layout of the matrices is PyTorch's. Not save_file, which makes a file
    # that its owner alone can read: a cache may be shared.
    (folder / "model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))
    for file, value in (("config.json", CONFIG), ("preprocessor_config.json", PREPROCESSOR)):
        (folder / file).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def read(source: Path) -> Graph:
    """Reads an ONNX file; needs the package ``onnx``.

    Raises:
        ValueError: it is not one.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        graph = onnx.load(str(source), format="protobuf", load_external_data=False).graph
        elsewhere = [t.name for t in graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
        # to_array would look for the others' file in the working folder
        tensors = {} if elsewhere else {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    except (DecodeError, ValueError, TypeError) as error:
        raise ValueError(f"{source} can't be read as an ONNX file: {error}") from error
    if elsewhere:
        raise ValueError(f"{source}: the tensors {elsewhere[:3]} ({len(elsewhere)}) lie in another file")
    return Graph(tensors, tuple(Node(node.op_type, node.name, tuple(node.input)) for node in graph.node))


def state(graph: Graph) -> dict[str, NDArray[Any]]:
    """The tensors of the backbone in the graph, under the names of ``shapes()``.

    The mask token is of use in pretraining only and is no part of an exported graph; it is 0.
    """
    found = {name.removeprefix(_PREFIX): value for name, value in graph.tensors.items() if name.startswith(_PREFIX)}
    cut: dict[str, NDArray[Any]] = {}
    for node in graph.nodes:
        nameless = [name for name in node.inputs if name in graph.tensors and not name.startswith(_PREFIX)]
        if not nameless:
            continue
        value = graph.tensors[nameless[0]]
        if node.name.startswith(_EMBEDDINGS):
            cut[node.kind] = value
        elif node.kind == "MatMul" and node.name.startswith("/backbone/"):
            path = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            found[f"{path}.weight"] = np.ascontiguousarray(value.T)
    if {"Concat", "Reshape"} <= cut.keys():  # the class token's position, and those of the patches
        found["embeddings.position_embeddings"] = np.concatenate([cut["Concat"], cut["Reshape"]], axis=1)
    found["embeddings.mask_token"] = np.zeros((1, HIDDEN), np.float32)
    return found


def shapes() -> dict[str, tuple[int, ...]]:
    """The names and shapes in the file of Transformers' ``Dinov2Model`` with ``CONFIG``.

    Its later releases call the modules otherwise (``q_proj`` for ``query``), and rename when loading and saving.

    >>> shapes()["embeddings.position_embeddings"]
    (1, 1370, 384)
    """
    wide = RATIO * HIDDEN
    vector = (HIDDEN,)
    expected: dict[str, tuple[int, ...]] = {
        "embeddings.cls_token": (1, 1, HIDDEN),
        "embeddings.mask_token": (1, HIDDEN),
        "embeddings.position_embeddings": (1, 1 + (IMAGE // PATCH) ** 2, HIDDEN),
        "embeddings.patch_embeddings.projection.weight": (HIDDEN, 3, PATCH, PATCH),
        "embeddings.patch_embeddings.projection.bias": vector,
        "layernorm.weight": vector,
        "layernorm.bias": vector,
    }
    linear = {
        **{f"attention.attention.{part}": (HIDDEN, HIDDEN) for part in ("query", "key", "value")},
        "attention.output.dense": (HIDDEN, HIDDEN),
        "mlp.fc1": (wide, HIDDEN),
        "mlp.fc2": (HIDDEN, wide),
    }
    for layer in (f"encoder.layer.{number}." for number in range(LAYERS)):
        for part, shape in linear.items():
            expected |= {f"{layer}{part}.weight": shape, f"{layer}{part}.bias": shape[:1]}
        for norm in ("norm1", "norm2"):
            expected |= {f"{layer}{norm}.weight": vector, f"{layer}{norm}.bias": vector}
        for scale in ("layer_scale1", "layer_scale2"):
            expected[f"{layer}{scale}.lambda1"] = vector
    return expected


def _check(tensors: dict[str, NDArray[Any]], source: Path) -> None:
    """Raises the first difference between the tensors and ``shapes()``, with both values."""
    expected = shapes()
    missing, unknown = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or unknown:
        raise ValueError(
            f"{source} does not hold the {len(expected)} tensors of DINOv2 ViT-S/14: "
            f"missing {missing[:3]} ({len(missing)}), unknown {unknown[:3]} ({len(unknown)})"
        )
    for name, value in tensors.items():
        if value.shape != expected[name] or value.dtype != np.float32:
            raise ValueError(f"{source}: {name} is {value.dtype} {value.shape}, expected float32 {expected[name]}")
