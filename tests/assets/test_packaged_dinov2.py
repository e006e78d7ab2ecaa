"""The conversion of DINOv2 out of a graph: random weights in the real file's layout, and Transformers as the judge."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForImageClassification, Dinov2Config, Dinov2Model

from gpart.assets import dinov2
from gpart.assets.dinov2 import CONFIG, Graph, Node, convert, read, shapes
from gpart.assets.fetching import fetch
from gpart.errors import GPartError

MATRICES = (".query.weight", ".key.weight", ".value.weight", ".dense.weight", ".fc1.weight", ".fc2.weight")


def random_state() -> dict[str, np.ndarray]:
    """Different values everywhere, so that no two tensors of one shape can be mixed up unnoticed."""
    source = np.random.default_rng(0)
    state = {name: source.standard_normal(shape, np.float32) for name, shape in shapes().items()}
    state["embeddings.mask_token"][:] = 0
    return state


def graph_of(state: dict[str, np.ndarray]) -> Graph:
    """What PyTorch's exporter makes of these weights: nameless matrices, transposed, and position embeddings in two."""
    tensors: dict[str, np.ndarray] = {"decoder.upconv1.weight": np.ones((2, 2), np.float32)}
    embeddings = "/backbone/embeddings"
    nodes = [
        Node("Conv", f"{embeddings}/patch_embeddings/projection/Conv", ("pixels", "backbone.embeddings.x")),
        Node("Concat", f"{embeddings}/Concat_3", ("backbone.embeddings.cls_token", "patches")),
        Node("Concat", f"{embeddings}/Concat_6", ("onnx::Concat_7", "resized")),
        Node("Reshape", f"{embeddings}/Reshape_1", ("onnx::Reshape_8", "size")),
        Node("MatMul", "/decoder/MatMul", ("x", "onnx::MatMul_9")),
    ]
    tensors["onnx::MatMul_9"] = np.ones((3, 3), np.float32)
    for number, (name, value) in enumerate(state.items(), start=10):
        if name == "embeddings.position_embeddings":
            tensors["onnx::Concat_7"], tensors["onnx::Reshape_8"] = value[:, :1], value[:, 1:]
        elif name.endswith(MATRICES):
            path = "/backbone/" + name.removesuffix(".weight").replace(".", "/").replace("layer/", "layer.")
            tensors[f"onnx::MatMul_{number}"] = np.ascontiguousarray(value.T)
            nodes.append(Node("MatMul", f"{path}/MatMul", ("x", f"onnx::MatMul_{number}")))
        elif name != "embeddings.mask_token":
            tensors[f"backbone.{name}"] = value
    nodes.append(Node("MatMul", "/backbone/encoder/layer.0/attention/attention/MatMul", ("q", "k")))
    return Graph(tensors, tuple(nodes))


@pytest.fixture(scope="module")
def state() -> dict[str, np.ndarray]:
    return random_state()


@pytest.fixture
def graph(state: dict[str, np.ndarray]) -> Graph:
    made = graph_of(state)
    return replace(made, tensors=dict(made.tensors))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "made").mkdir()
    return tmp_path / "made"


def given(monkeypatch: pytest.MonkeyPatch, graph: Graph) -> None:
    monkeypatch.setattr(dinov2, "read", lambda source: graph)


def saved(model: Dinov2Model, folder: Path) -> dict[str, torch.Tensor]:
    """What Transformers writes, since its modules are not called as in its files."""
    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def test_shapes_are_those_of_transformers(tmp_path: Path) -> None:
    model = Dinov2Model(Dinov2Config(**CONFIG))
    assert shapes() == {name: tuple(value.shape) for name, value in saved(model, tmp_path).items()}


def test_config_is_that_of_dinov2_small() -> None:
    """What is written out agrees with what Transformers has for the model beyond its five sizes."""
    known = Dinov2Config(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518, patch_size=14
    ).to_dict()
    known |= {"architectures": ["Dinov2Model"], "dtype": "float32"}
    assert {key: known[key] for key in CONFIG} == CONFIG


def test_converted_folder_loads_with_only_the_head_new(
    folder: Path, graph: Graph, state: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    given(monkeypatch, graph)
    convert(folder / "x.onnx", folder)
    model, info = AutoModelForImageClassification.from_pretrained(folder, num_labels=3, output_loading_info=True)
    assert set(info["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert model.classifier.out_features == 3
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}  # what releases of Transformers have asked for
    loaded = saved(Dinov2Model.from_pretrained(folder), folder.parent / "saved")
    assert loaded.keys() == state.keys()
    for name, value in state.items():
        assert torch.equal(loaded[name], torch.from_numpy(value)), name

    processor = AutoImageProcessor.from_pretrained(folder)
    pixels = processor(Image.new("L", (300, 250), 255), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 224, 224)  # grey becomes RGB
    white = [(1 - mean) / std for mean, std in ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))]
    torch.testing.assert_close(pixels[0, :, 100, 100], torch.tensor(white), atol=1e-5, rtol=0)
    modes = {path.name: path.stat().st_mode for path in folder.iterdir()}
    assert len(modes) == 3
    assert len(set(modes.values())) == 1, modes  # nothing that the owner alone can read


def without(name: str) -> Callable[[Graph], Graph]:
    return lambda graph: replace(graph, tensors={key: value for key, value in graph.tensors.items() if key != name})


def other(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Graph], Graph]:
    return lambda graph: replace(graph, tensors={**graph.tensors, name: change(graph.tensors[name])})


FC1 = "/backbone/encoder/layer.3/mlp/fc1/MatMul"
NORM = "backbone.layernorm.weight"
WRONG = {
    "a tensor less": (without(NORM), r"missing \['layernorm\.weight'\] \(1\), unknown \[\] \(0\)"),
    "a tensor more": (
        lambda graph: replace(graph, tensors={**graph.tensors, "backbone.register_tokens": np.zeros(4, np.float32)}),
        r"missing \[\] \(0\), unknown \['register_tokens'\] \(1\)",
    ),
    "a matrix less": (
        lambda graph: replace(graph, nodes=tuple(node for node in graph.nodes if node.name != FC1)),
        r"missing \['encoder\.layer\.3\.mlp\.fc1\.weight'\]",
    ),
    "half of the positions": (without("onnx::Reshape_8"), r"missing \['embeddings\.position_embeddings'\]"),
    "fewer positions": (
        other("onnx::Reshape_8", lambda value: value[:, 1:]),
        r"position_embeddings is float32 \(1, 1369, 384\), expected float32 \(1, 1370, 384\)",
    ),
    "another size": (
        other(NORM, lambda value: value[:-1]),
        r"layernorm\.weight is float32 \(383,\), expected float32 \(384,\)",
    ),
    "another type": (
        other(NORM, lambda value: value.astype(np.float16)),
        r"layernorm\.weight is float16 \(384,\), expected float32 \(384,\)",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_tensors_are_named_and_nothing_is_written(
    folder: Path, graph: Graph, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    change, message = WRONG[what]
    given(monkeypatch, change(graph))
    with pytest.raises(GPartError, match=message) as caught:
        convert(folder / "x.onnx", folder)
    assert str(folder / "x.onnx") in str(caught.value)
    assert not list(folder.iterdir())


def test_without_onnx_the_way_to_get_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPART_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(GPartError, match=r"pip install 'gpart-lightning\[vision\]'"):
        fetch("dinov2-small")
    assert not (tmp_path / "cache").exists()


def write_onnx(path: Path, graph: Graph) -> Path:
    onnx = pytest.importorskip("onnx")
    tensors = [onnx.numpy_helper.from_array(value, name) for name, value in graph.tensors.items()]
    nodes = [
        onnx.helper.make_node(node.kind, list(node.inputs), [f"{node.name}_output_0"], name=node.name)
        for node in graph.nodes
    ]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "main_graph", [], [], tensors)), path)
    return path


def test_read_and_convert_a_real_onnx_file(tmp_path: Path, folder: Path, graph: Graph) -> None:
    path = write_onnx(tmp_path / "x.onnx", graph)
    found = read(path)
    assert found.nodes == graph.nodes
    assert found.tensors.keys() == graph.tensors.keys()
    assert all(np.array_equal(found.tensors[name], value) for name, value in graph.tensors.items())
    convert(path, folder)
    assert len(list(folder.iterdir())) == 3


@pytest.mark.parametrize("content", [b"", b"no protocol buffer", None])
def test_what_is_no_onnx_file_is_refused(tmp_path: Path, folder: Path, graph: Graph, content: bytes | None) -> None:
    pytest.importorskip("onnx")
    path = tmp_path / "x.onnx"
    if content is None:
        write_onnx(path, Graph({"x": np.ones(1000, np.float32)}, ()))
        content = path.read_bytes()[:-500]
    path.write_bytes(content)
    with pytest.raises(GPartError) as caught:
        convert(path, folder)
    assert str(path) in str(caught.value)
    assert not list(folder.iterdir())


@pytest.mark.parametrize("field", ["dims", "data_type"])
def test_tensor_without_sense_is_refused(tmp_path: Path, field: str) -> None:
    onnx = pytest.importorskip("onnx")
    path = write_onnx(tmp_path / "x.onnx", Graph({"x": np.ones(1000, np.float32)}, ()))
    model = onnx.load(path)
    if field == "dims":
        model.graph.initializer[0].dims[0] = 999
    else:
        model.graph.initializer[0].data_type = onnx.TensorProto.UNDEFINED
    path.write_bytes(model.SerializeToString())
    with pytest.raises(GPartError, match="can't be read as an ONNX file"):
        read(path)


def test_tensor_in_another_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx = pytest.importorskip("onnx")
    path = write_onnx(tmp_path / "x.onnx", Graph({"secret": np.ones(1000, np.float32)}, ()))
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="data", size_threshold=0)
    assert (tmp_path / "data").is_file()
    monkeypatch.chdir(tmp_path)  # where a reader would look for it
    with pytest.raises(GPartError, match=r"\['secret'\] \(1\) lie in another file"):
        read(path)
