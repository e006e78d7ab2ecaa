"""Images come in the request, as PNG or JPEG, and are counted before they are decoded."""

from __future__ import annotations

import base64
import io
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from gpart import GPartConfig, attach, load_adapter
from gpart.serving.api import Settings, make_engine
from gpart.serving.images import decoded
from gpart.serving.requests import Limits, RequestError


def image(kind: str = "PNG", size: tuple[int, int] = (9, 7), shade: int = 90) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize(size).point(lambda value: (value + shade) % 256).convert("RGB").save(file, kind)
    return file.getvalue()


def body(content: bytes, **more: Any) -> dict[str, Any]:
    return {"image": base64.b64encode(content).decode(), **more}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from served_models import fill
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    root = tmp_path_factory.mktemp("vit")
    torch.manual_seed(4)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=16,
        patch_size=8,
        num_labels=3,
        initializer_range=0.4,
    )
    model = ViTForImageClassification(config)
    model.save_pretrained(root / "base")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(root / "base")
    names = [name for name, _ in model.named_modules() if name.endswith(("query", "q_proj"))]
    adapter = attach(model, GPartConfig(d=30, target_modules=names, modules_to_save=["classifier"]))
    for number in range(2):
        fill(adapter, number)
        adapter.save(root / "adapters" / f"u{number}")
    return root


@torch.no_grad()
def test_batches_give_what_each_image_gives_alone(folders: Path) -> None:
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    engine = make_engine(Settings(str(folders / "base"), str(folders / "adapters")))
    asked = [(name, kind, shade) for name in (None, "u0", "u1") for kind in ("PNG", "JPEG") for shade in (0, 120)]
    answers = engine.answer([engine.read(body(image(kind, shade=shade), adapter=name)) for name, kind, shade in asked])
    found = set()
    models = {
        name: AutoModelForImageClassification.from_pretrained(folders / "base").eval() for name in (None, "u0", "u1")
    }
    for name in ("u0", "u1"):
        load_adapter(models[name], folders / "adapters" / name)
    for (name, kind, shade), answer in zip(asked, answers, strict=True):
        assert not isinstance(answer, RequestError), answer
        shown = Image.open(io.BytesIO(image(kind, shade=shade)))
        pixels = AutoImageProcessor.from_pretrained(folders / "base")(shown, return_tensors="pt")
        values = models[name](**pixels).logits[0].softmax(-1)
        assert answer["label"] == f"LABEL_{int(values.argmax())}"
        assert answer["score"] == pytest.approx(values.max().item(), abs=1e-5)
        found.add(round(answer["score"], 5))
    assert len(found) > 6


@torch.no_grad()
def test_pictures_are_prepared_as_the_adapter_was_trained(folders: Path, tmp_path: Path) -> None:
    """The labels are those of ``gpart predict``, also where the processor has another size and would squeeze."""
    from transformers import ViTForImageClassification, ViTImageProcessor

    from gpart.datamodules import ImageDataModule

    base, taken = tmp_path / "base", {}
    model = ViTForImageClassification.from_pretrained(folders / "base").eval()
    model.save_pretrained(base)
    ViTImageProcessor(size={"height": 24, "width": 24}).save_pretrained(base)
    (tmp_path / "pictures").mkdir()
    for number in range(12):
        size = ((40, 18), (17, 40), (16, 16))[number % 3]
        shown = Image.effect_noise(size, 90).convert("RGB")
        exif = shown.getexif()
        exif[0x0112] = 6 if number % 2 else 1  # a camera held upright
        shown.save(path := tmp_path / "pictures" / f"{number:02}.png", exif=exif)
        taken[number] = path.read_bytes()
    data = ImageDataModule(
        "imagefolder", path=str(tmp_path / "pictures"), model=str(base), image_size=16, num_workers=0
    )
    data.setup("predict")
    adapter = load_adapter(model, folders / "adapters" / "u0")
    adapter.about = replace(adapter.about, inputs=data.adapter_facts()["inputs"])
    adapter.save(tmp_path / "adapters" / "u0")
    expected = torch.cat([model(batch["pixel_values"]).logits for batch in data.predict_dataloader()]).softmax(-1)
    engine = make_engine(Settings(str(base), str(tmp_path / "adapters")))
    answers = engine.answer([engine.read(body(content, adapter="u0")) for content in taken.values()])
    for row, answer in zip(expected, answers, strict=True):
        assert not isinstance(answer, RequestError), answer
        assert answer["label"] == f"LABEL_{int(row.argmax())}"
        assert answer["score"] == pytest.approx(row.max().item(), abs=1e-5)
    assert len({round(row.max().item(), 4) for row in expected}) > 6


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("PNG", mode) for mode in ("RGB", "L", "1", "RGBA", "P", "LA")] + [("JPEG", "CMYK"), ("JPEG", "L")],
)
def test_every_mode_becomes_rgb(kind: str, mode: str) -> None:
    file = io.BytesIO()
    Image.new(mode, (4, 3)).save(file, kind)
    read = decoded(body(file.getvalue()), Limits())
    assert (read.mode, read.size) == ("RGB", (4, 3))


def bomb() -> bytes:
    """A PNG whose head promises more pixels than the file has."""
    content = bytearray(image())
    content[16:24] = (50_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        ({}, "'image' must be a PNG or JPEG file in base64"),
        ({"image": 3}, "'image' must be"),
        ({"image": "/etc/passwd"}, "no base64"),
        ({"image": "file:///etc/hosts"}, "no base64"),
        ({"image": "é" * 8}, "no base64"),
        (body(b"GIF89a" + b"\0" * 50), "no PNG or JPEG"),
        (body(image("GIF")), "no PNG or JPEG"),
        (body(image("TIFF")), "no PNG or JPEG"),
        (body(image("WEBP")), "no PNG or JPEG"),
        (body(image()[:60]), "no PNG or JPEG"),
        (body(image("JPEG")[:-300]), "no PNG or JPEG"),
        (body(image()[:45] + b"\xff" + image()[46:]), "no PNG or JPEG"),
        (body(b""), "'image' must be"),
        (body(image(size=(41, 40))), "the image has 41 x 40 pixels; the server takes 1600"),
        (body(bomb()), "pixels"),
        (body(b"\0" * 3004), "the image has about 3006 bytes; the server takes 3000"),
    ],
)
def test_what_is_no_image_is_refused(sent: dict[str, Any], reason: str, recwarn: pytest.WarningsRecorder) -> None:
    with pytest.raises(RequestError) as error:
        decoded(sent, Limits(pixels=1600, image_bytes=3000))
    assert (error.value.status, reason in error.value.detail) == (422, True), error.value.detail
    assert "0x" not in error.value.detail


def test_an_image_of_exactly_the_limits_is_read() -> None:
    content = image(size=(40, 40))
    assert decoded(body(content), Limits(pixels=1600, image_bytes=len(content))).size == (40, 40)
