"""``gpart serve``: many adapters over one base, by HTTP."""

from __future__ import annotations

import argparse
from importlib.util import find_spec

from gpart.assets.fetching import resolve
from gpart.cli.message import Parser
from gpart.errors import GPartError

DESCRIPTION = """Serves one base model and every adapter in a folder by HTTP, on LitServe. A request names its adapter; the
folder is looked at anew for each, so that adapters may come, go and be replaced while it runs."""

EXAMPLES = """example:
  gpart serve --base packaged:minilm --adapters adapters --task text-classification
  curl -d '{"text": "a charming film", "adapter": "anna"}' -H 'Content-Type: application/json' http://127.0.0.1:8000/predict

POST /predict takes {"adapter": NAME, ...} with
  text-classification   "text", and "text_pair", "top_k"
  generation            "prompt", and "max_new_tokens", "temperature", "top_p"
  image-classification  "image", a PNG or JPEG file in base64, and "top_k"
Without "adapter" the base answers. GET /adapters lists the names; /health is "ok" when the model is loaded. With
LIT_SERVER_API_KEY in the environment every request needs it in the header X-API-Key."""

TASKS = ("auto", "text-classification", "generation", "image-classification")
HOSTS = ("127.0.0.1", "0.0.0.0", "::")  # noqa: S104  # what LitServe takes; the first is the default
MIB = 1 << 20


def serve_command(words: list[str]) -> int:
    """Serves until it is ended by Ctrl-C or SIGTERM.

    Raises:
        GPartError: if LitServe is not installed, or what is to be served is not there or does not fit.
    """
    asked = _parser().parse_args(words)
    if find_spec("litserve") is None:
        raise GPartError("gpart serve needs LitServe: pip install 'gpart-lightning[serve]'")
    from gpart.serving.api import Settings  # noqa: PLC0415  # LitServe, FastAPI and Transformers
    from gpart.serving.requests import Limits  # noqa: PLC0415
    from gpart.serving.server import free_port, make_server, run_server  # noqa: PLC0415

    limits = Limits(asked.max_tokens, new_tokens=asked.max_new_tokens, image_bytes=asked.max_image * MIB)
    port = free_port(asked.host, asked.port)
    shown = f"[{asked.host}]" if ":" in asked.host else asked.host
    settings = Settings(
        base=resolve(asked.base),
        adapters=asked.adapters,
        task=asked.task,
        dtype=asked.dtype,
        memory=asked.memory * MIB,
        num_labels=asked.num_labels,
        limits=limits,
        started=f"gpart serve: {asked.base} is loaded, http://{shown}:{port} takes POST /predict and GET /adapters",
    )
    body = max(4 * limits.characters, limits.image_bytes * 4 // 3) + MIB
    server, failures = make_server(
        settings, asked.max_batch_size, asked.batch_timeout, body, asked.timeout, asked.accelerator
    )
    run_server(server, failures, asked.host, port, asked.log_level, asked.max_requests)
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="gpart serve",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--base", required=True, metavar="MODEL", help="a Transformers folder, a name on the hub, or packaged:NAME"
    )
    parser.add_argument(
        "--adapters", required=True, metavar="FOLDER", help="holds one adapter folder for each name; may be empty"
    )
    parser.add_argument(
        "--task", choices=TASKS, default="auto", help="default: auto, what the model's class was made for"
    )
    parser.add_argument(
        "--num-labels",
        type=_positive,
        metavar="N",
        help="classes of the head; default: the adapters', else the model's own",
    )
    where = parser.add_argument_group("where it listens and runs")
    where.add_argument(
        "--host", choices=HOSTS, default=HOSTS[0], help="default: %(default)s, which only this machine reaches"
    )
    where.add_argument("--port", type=int, default=8000, metavar="N", help="default: %(default)s; 0 takes a free one")
    where.add_argument(
        "--accelerator", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="default: %(default)s"
    )
    where.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto", help="default: the model's own"
    )
    where.add_argument(
        "--log-level",
        choices=("error", "warning", "info", "debug"),
        default="warning",
        help="default: %(default)s; info shows each request",
    )
    batch = parser.add_argument_group("batches and memory")
    batch.add_argument(
        "--max-batch-size",
        type=_positive,
        default=8,
        metavar="N",
        help="requests that run together; default: %(default)s",
    )
    batch.add_argument(
        "--batch-timeout",
        type=_seconds,
        default=0.01,
        metavar="S",
        help="seconds to wait for more of them; default: %(default)s",
    )
    batch.add_argument(
        "--memory", type=_positive, default=1024, metavar="MIB", help="for theta and heads; default: %(default)s"
    )
    limits = parser.add_argument_group("limits of a request")
    limits.add_argument(
        "--max-tokens",
        type=_positive,
        default=512,
        metavar="N",
        help="of a text, new ones included; default: %(default)s",
    )
    limits.add_argument("--max-new-tokens", type=_positive, default=256, metavar="N", help="default: %(default)s")
    limits.add_argument(
        "--max-image", type=_positive, default=10, metavar="MIB", help="of an image file; default: %(default)s"
    )
    limits.add_argument(
        "--timeout", type=_seconds, default=60.0, metavar="S", help="seconds to wait for a turn; default: %(default)s"
    )
    limits.add_argument(
        "--max-requests",
        type=_positive,
        default=256,
        metavar="N",
        help="at a time, above which the answer is 503; default: %(default)s",
    )
    return parser


def _positive(word: str) -> int:
    if (value := int(word)) < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {word}")
    return value


def _seconds(word: str) -> float:
    if not 0 < (value := float(word)) < 1e6:
        raise argparse.ArgumentTypeError(f"must be above 0, got {word}")
    return value


_positive.__name__, _seconds.__name__ = "whole number", "number"  # what argparse calls them in its errors
