"""Reads the DINOv2 ViT-S/14 out of an ONNX file that PyTorch exported, and writes it as a Hugging Face folder.

Invariant: ``model.safetensors`` holds exactly the names and shapes of ``shapes()``, in float32, or nothing is written.

PyTorch's exporter keeps a parameter's name where the graph uses the parameter unchanged. Two kinds of parameters lose
their names: the matrices of linear layers, which the graph holds transposed, and the position embeddings, which it
holds as two tensors. Both are found through the nodes that use them, since a node's name is its module's path.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from gpart.errors import GPartError

HIDDEN, LAYERS, HEADS, RATIO, PATCH, IMAGE = 384, 12, 6, 4, 14, 518
"""ViT-S/14 as Meta trained it. Its position embeddings are for 518 x 518 pixels; they are interpolated to others."""

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
"""``config.json``. It states every value that bears on the result, since Transformers' defaults may change."""

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
    """One node of the graph, as far as it is needed here."""

    kind: str
    """The operator, for example ``MatMul``."""
    name: str
    """The path of the module that the node comes from, and then the operator."""
    inputs: tuple[str, ...]
    """The names of its inputs: stored tensors, or other nodes' outputs."""


@dataclass(frozen=True)
class Graph:
    """The content of an ONNX file, as far as it is needed here."""

    tensors: dict[str, NDArray[Any]]
    """The stored tensors by name."""
    nodes: tuple[Node, ...]
    """The nodes, in the order in which they are computed."""


def convert(source: Path, folder: Path) -> None:
    """Writes ``model.safetensors``, ``config.json`` and ``preprocessor_config.json``.

    Args:
        source: the ONNX file.
        folder: an existing folder to write into.

    Raises:
        GPartError: if the file can't be read, or its tensors are not those of DINOv2 ViT-S/14. Nothing is written then.
    """
    tensors = state(read(source))
    _check(tensors, source)
    # "format" tells Transformers that the matrices have PyTorch's layout. We do not use save_file: it makes a file
    # that only its owner can read, and a cache may be shared.
    (folder / "model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))
    for file, value in (("config.json", CONFIG), ("preprocessor_config.json", PREPROCESSOR)):
        (folder / file).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def read(source: Path) -> Graph:
    """Reads an ONNX file. It needs the package ``onnx``.

    Raises:
        GPartError: if the file is not an ONNX file, or its tensors are stored in another file.
    """
    import onnx  # noqa: PLC0415  # an optional dependency, needed once
    from google.protobuf.message import DecodeError  # noqa: PLC0415  # comes with onnx

    try:
        graph = onnx.load(str(source), format="protobuf", load_external_data=False).graph
        elsewhere = [t.name for t in graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
        # to_array would look for an external file in the working folder
        tensors = {} if elsewhere else {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    except (DecodeError, ValueError, TypeError) as error:
        raise GPartError(f"{source} can't be read as an ONNX file: {error}") from error
    if elsewhere:
        raise GPartError(f"{source}: the tensors {elsewhere[:3]} ({len(elsewhere)}) lie in another file")
    return Graph(tensors, tuple(Node(node.op_type, node.name, tuple(node.input)) for node in graph.node))


def state(graph: Graph) -> dict[str, NDArray[Any]]:
    """Returns the backbone's tensors in the graph, under the names of ``shapes()``.

    The mask token is used in pretraining only, and an exported graph does not hold it. It is set to 0.
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
    if {"Concat", "Reshape"} <= cut.keys():  # the class token's position embedding, and those of the patches
        found["embeddings.position_embeddings"] = np.concatenate([cut["Concat"], cut["Reshape"]], axis=1)
    found["embeddings.mask_token"] = np.zeros((1, HIDDEN), np.float32)
    return found


def shapes() -> dict[str, tuple[int, ...]]:
    """Returns the names and shapes in the file of Transformers' ``Dinov2Model`` with ``CONFIG``.

    Later releases of Transformers have other names for the modules (``q_proj`` instead of ``query``). They still read
    and write the names given here.

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
    """Raises an error if the tensors are not those of ``shapes()``; it names the first difference."""
    expected = shapes()
    missing, unknown = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or unknown:
        raise GPartError(
            f"{source} does not hold the {len(expected)} tensors of DINOv2 ViT-S/14: "
            f"missing {missing[:3]} ({len(missing)}), unknown {unknown[:3]} ({len(unknown)})"
        )
    for name, value in tensors.items():
        if value.shape != expected[name] or value.dtype != np.float32:
            raise GPartError(f"{source}: {name} is {value.dtype} {value.shape}, expected float32 {expected[name]}")
