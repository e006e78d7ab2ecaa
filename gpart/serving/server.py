"""``gpart serve``: the HTTP server around :mod:`gpart.serving.api`.

Invariant: four paths answer, POST ``/predict`` and GET ``/adapters``, ``/health`` and ``/info``; none of them opens a file
that a request names. What is wrong at the start is one :class:`gpart.errors.GPartError`, and leaves no process behind.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import signal
import socket
import sys
from typing import Any

from fastapi import Depends
from fastapi.responses import JSONResponse
from litserve import LitServer
from litserve.connector import check_cuda_with_nvidia_smi

from gpart.errors import GPartError
from gpart.serving.api import AdapterAPI, Settings
from gpart.serving.names import check_folder, listed


def make_server(
    settings: Settings,
    max_batch_size: int = 8,
    batch_timeout: float = 0.01,
    max_body: int = 16 << 20,
    timeout: float = 60.0,
    accelerator: str = "auto",
) -> tuple[LitServer, Any]:
    """The LitServe server, not yet started, and the connection that gets the reason where its model cannot be loaded.

    Args:
        settings: what is served.
        max_batch_size: requests that run together.
        batch_timeout: seconds to wait for more of them.
        max_body: bytes of a request's body.
        timeout: seconds that a request may wait for its turn.
        accelerator: LitServe's: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.

    Raises:
        GPartFileError: if there is no folder of adapters.
    """
    folder = check_folder(settings.adapters)
    failures, told = multiprocessing.get_context("spawn").Pipe(duplex=False)
    api = AdapterAPI(settings, told, max_batch_size, batch_timeout)
    server = LitServer(
        api,
        accelerator=_accelerator() if accelerator == "auto" else accelerator,
        devices=1,
        timeout=timeout,
        max_payload_size=max_body,
        model_metadata={"task": settings.task, "limits": vars(settings.limits)},
        disable_openapi_url=True,
    )

    def adapters() -> JSONResponse:
        return JSONResponse({"adapters": listed(folder)})

    server.app.add_api_route("/adapters", adapters, dependencies=[Depends(server.setup_auth())])
    return server, failures


def run_server(server: LitServer, failures: Any, host: str, port: int, log_level: str, max_requests: int) -> None:
    """Serves until Ctrl-C or SIGTERM.

    Args:
        server: from :func:`make_server`.
        failures: the same.
        host: one that LitServe takes: 127.0.0.1, 0.0.0.0 or ::.
        port: from :func:`free_port`.
        log_level: of LitServe and uvicorn.
        max_requests: above which uvicorn answers 503.

    Raises:
        GPartError: if the model cannot be loaded.
    """
    mine = os.getpid()

    def end(number: int, _: Any) -> None:
        if os.getpid() == mine:
            raise KeyboardInterrupt  # LitServe ends its processes then
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.run(
            host=host,
            port=port,
            num_api_servers=1,
            log_level=log_level,
            generate_client_file=False,
            limit_concurrency=max_requests,
        )
    except RuntimeError as error:
        if not failures.poll():
            raise
        raise GPartError(failures.recv()) from error
    except KeyboardInterrupt:
        return
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def free_port(host: str, port: int) -> int:
    """A port that a server can listen at: the given one, or any for 0.

    Raises:
        GPartError: if it is taken, or not from 1024 to 65535.
    """
    if port != 0 and not 1024 <= port <= 65535:
        raise GPartError(f"port must be from 1024 to 65535, or 0 for any, got {port}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise GPartError(f"port {port} of {host} cannot be used: {error.strerror}") from error
        return int(probe.getsockname()[1])


def _accelerator() -> str:
    """What a model runs on; LitServe's own ``"auto"`` takes the CPU where torch is not imported yet."""
    if check_cuda_with_nvidia_smi() > 0:
        return "cuda"
    return "mps" if sys.platform == "darwin" and platform.machine() == "arm64" else "cpu"
