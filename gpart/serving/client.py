"""A client for ``gpart serve``, of Python's own parts."""

from __future__ import annotations

import base64
import json
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from gpart.errors import GPartError


class Client:
    """Asks a server.

    Args:
        url: where it is.
        timeout: seconds to wait for an answer.
        api_key: what the server was started with in ``LIT_SERVER_API_KEY``, if it was.

    Example:
        >>> client = Client("http://127.0.0.1:8000")  # doctest: +SKIP
        >>> client.adapters()  # doctest: +SKIP
        ['anna', 'ben']
        >>> client.predict(text="a charming film", adapter="anna")  # doctest: +SKIP
        {'label': 'positive', 'score': 0.98, ...}
    """

    def __init__(self, url: str = "http://127.0.0.1:8000", timeout: float = 60.0, api_key: str | None = None) -> None:
        if not url.startswith(("http://", "https://")):
            raise GPartError(f"a server's address begins with http:// or https://, got {url!r}")
        self.url, self.timeout = url.rstrip("/"), timeout
        self.headers = {"Content-Type": "application/json"} | ({"X-API-Key": api_key} if api_key else {})

    def predict(self, adapter: str | None = None, image: bytes | None = None, **inputs: Any) -> dict[str, Any]:
        """The answer to one request.

        Args:
            adapter: its name in the served folder; None for the base.
            image: a PNG or JPEG file's content, for image classification.
            inputs: the request's other fields, such as ``text`` or ``prompt``.

        Raises:
            GPartError: if the server refuses it, with the status and the reason.
        """
        if image is not None:
            inputs["image"] = base64.b64encode(image).decode()
        answer: dict[str, Any] = self._ask("/predict", json.dumps({"adapter": adapter, **inputs}).encode())
        return answer

    def adapters(self) -> list[str]:
        """The names of the adapters that lie in the served folder now."""
        names: list[str] = self._ask("/adapters")["adapters"]
        return names

    def _ask(self, path: str, data: bytes | None = None) -> Any:
        try:
            with urlopen(Request(self.url + path, data, self.headers), timeout=self.timeout) as answer:  # noqa: S310  # http only, see __init__
                return json.load(answer)
        except HTTPError as error:
            raise GPartError(
                f"{self.url}{path} answers {error.code}: {error.read().decode(errors='replace')}"
            ) from None
