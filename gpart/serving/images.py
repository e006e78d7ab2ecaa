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
    """The image in a request, as RGB.

    Raises:
        RequestError: if it is missing, too large, or no PNG or JPEG.
    """
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
                return Image.open(io.BytesIO(content), formats=FORMATS).convert(
                    "RGB"
                )  # verify leaves the first unusable
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

    def read(self, body: Mapping[str, Any]) -> tuple[Tensor, int]:
        """The pixel values, shape (channels, height, width), and how many labels are wanted.

        Raises:
            RequestError: if a field is not as it has to be.
        """
        check_fields(body, ("image", "top_k"))
        top_k = whole(body, "top_k", 5, 1000)
        pixels: Tensor = self.processor(decoded(body, self.limits), return_tensors="pt")["pixel_values"][0]
        return pixels, top_k

    def group(self, read: tuple[Tensor, int]) -> Hashable:
        """Those of one shape may run together."""
        return tuple(read[0].shape)

    @torch.no_grad()
    def run(self, model: nn.Module, read: Sequence[tuple[Tensor, int]], about: About | None) -> list[dict[str, Any]]:
        """The answers, in order."""
        first = next(model.parameters())
        pixels = torch.stack([pixels for pixels, _ in read]).to(first.device, first.dtype)
        logits = model(pixel_values=pixels).logits.cpu()
        return [scores(row, self.config, top_k, about) for row, (_, top_k) in zip(logits, read, strict=True)]
