"""Image classification.

Invariant: an image is decoded only after its bytes and its pixels were counted, and only as PNG or JPEG. It comes in the
request; nothing is fetched and no path is opened.
"""

from __future__ import annotations

import base64
import binascii
import io
import struct
import zlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from gpart.serialization.about import About
from gpart.serving.requests import UNPROCESSABLE, Limits, RequestError, check_fields, whole
from gpart.serving.texts import scores

FORMATS = ("PNG", "JPEG")
_UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


def decoded(body: Mapping[str, Any], limits: Limits) -> Image.Image:
    """The image in a request, as RGB and upright, as ``gpart predict`` reads it from a file.

    Raises:
        RequestError: if it is missing, too large, or no PNG or JPEG.
    """
    from gpart.datamodules.vision.reading import as_rgb  # noqa: PLC0415  # torchvision and Lightning come with it

    value = body.get("image")
    if not isinstance(value, str) or not value:
        raise RequestError(UNPROCESSABLE, "'image' must be a PNG or JPEG file in base64")
    if (size := len(value) // 4 * 3) > limits.image_bytes + 2:
        raise RequestError(UNPROCESSABLE, f"the image has about {size} bytes; the server takes {limits.image_bytes}")
    try:
        content = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(UNPROCESSABLE, f"'image' is no base64: {error}") from None
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:  # reads no more than the head
            width, height = image.size
            if width * height <= limits.pixels:
                image.verify()
                return as_rgb(Image.open(io.BytesIO(content), formats=FORMATS))  # verify leaves the first unusable
    except _UNREADABLE as error:
        shown = str(error).partition(" <")[0]  # PIL shows its own object
        raise RequestError(UNPROCESSABLE, f"'image' is no PNG or JPEG that can be read: {shown}") from None
    raise RequestError(UNPROCESSABLE, f"the image has {width} x {height} pixels; the server takes {limits.pixels}")


@dataclass(frozen=True)
class ImageClassification:
    """``{"image": base64, "top_k": 5}`` to ``{"label": ..., "score": ..., "top": [...]}``."""

    processor: Any
    config: Any
    limits: Limits

    def read(self, body: Mapping[str, Any]) -> tuple[Image.Image, int]:
        """The picture, and how many labels are wanted.

        Raises:
            RequestError: if a field is not as it has to be.
        """
        check_fields(body, ("image", "top_k"))
        top_k = whole(body, "top_k", 5, 1000)
        return decoded(body, self.limits), top_k

    def group(self, read: tuple[Image.Image, int]) -> Hashable:
        """All of one adapter come together: which shape they get depends on it."""
        return None

    @torch.no_grad()
    def run(
        self, model: nn.Module, read: Sequence[tuple[Image.Image, int]], about: About | None
    ) -> list[dict[str, Any]]:
        """The answers, in order; pictures of one shape run together."""
        first = next(model.parameters())
        pixels = self._prepared([image for image, _ in read], about)
        logits: dict[int, Tensor] = {}
        for shape in dict.fromkeys(one.shape for one in pixels):
            places = [at for at, one in enumerate(pixels) if one.shape == shape]
            together = torch.stack([pixels[at] for at in places]).to(first.device, first.dtype)
            logits.update(zip(places, model(pixel_values=together).logits.cpu(), strict=True))
        return [scores(logits[at], self.config, top_k, about) for at, (_, top_k) in enumerate(read)]

    def _prepared(self, images: Sequence[Image.Image], about: About | None) -> list[Tensor]:
        """The pixel values, each of shape (channels, height, width): as the adapter was trained, where its file says it."""
        from gpart.datamodules.vision.reading import evaluation_transform  # noqa: PLC0415  # as above
        from gpart.datamodules.vision.settings import of_inputs  # noqa: PLC0415

        settings = of_inputs(about.inputs if about else {})
        if settings is not None:
            transform = evaluation_transform(settings)
            return [transform(image) for image in images]
        return [self.processor(image, return_tensors="pt")["pixel_values"][0] for image in images]
