"""What is said where the hub does not give a model: why, and what to do, in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub.constants
import pytest
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from gpart.assets.fetching import loading
from gpart.assets.hub_reason import hub_reason
from gpart.datamodules.common.own_files import read_parts
from gpart.datamodules.common.own_rows import BadRows
from gpart.datamodules.language.glue import GLUEDataModule
from gpart.datamodules.vision.settings import load_settings
from gpart.errors import GPartError, GPartFileError
from gpart.lightning_modules.vision.networks import build
from gpart.studies import architectures

ANSWER: Any = SimpleNamespace(headers={}, request=None)
"""What the errors ask of an answer, of whichever HTTP library it is."""


def raised(cause: Exception | None) -> OSError:
    """As Transformers does it: words of its own over several lines, from the hub's."""
    error = OSError("a long story,\nin lines")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("cause", "said"),
    [
        (GatedRepoError("403", response=ANSWER), r"gated: ask for access at \S+/me/mine, then log in \(hf auth login"),
        (RepositoryNotFoundError("404", response=ANSWER), "none on the hub by this name, or it is private: log in"),
        (HfHubHTTPError("500", response=ANSWER), "a long story, in lines"),
        (None, "a long story, in lines"),
    ],
)
def test_what_the_hub_says_is_told_with_the_remedy(cause: Exception | None, said: str) -> None:
    with pytest.raises(GPartFileError, match=said) as caught, loading("me/mine"):
        raise raised(cause)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("model 'me/mine' can't be loaded, as a folder or from the hub: ")


def test_a_hub_that_cannot_be_reached_is_another_matter_than_one_that_must_not_be_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    error = raised(ConnectionError("no route"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set, so that the hub is not asked: unset it" in hub_reason("me/mine", error)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    assert f"{huggingface_hub.constants.ENDPOINT} cannot be reached: look at the network" in hub_reason(
        "me/mine", error
    )


def test_what_was_left_behind_is_no_cause() -> None:
    error = OSError("damaged")
    error.__context__, error.__suppress_context__ = ConnectionError("no route"), True  # raised from None
    assert hub_reason("me/mine", error) == "damaged"
    error.__suppress_context__ = False
    assert hub_reason("me/mine", error) != "damaged"


@pytest.mark.parametrize(
    "load",
    [
        lambda: build("nosuch/model", 2),
        lambda: build("timm:resnet10t", 2),
        lambda: build("timm:hf-hub:nosuch/model", 2),
        lambda: load_settings("nosuch/model"),
        lambda: load_settings("timm:hf-hub:nosuch/model"),
        lambda: read_parts("nosuch/texts", BadRows("error")),
        lambda: GLUEDataModule("rte", "packaged:minilm", path="nosuch/glue").setup("fit"),
        lambda: architectures.config("nosuch/model"),
    ],
    ids=["model", "timm", "timm on the hub", "processor", "timm's processor", "texts", "GLUE", "architecture"],
)
def test_offline_all_that_is_not_cached_says_so(
    load: Callable[[], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(GPartError) as caught:
        load()
    message = str(caught.value)
    assert "HF_HUB_OFFLINE is set, so that the hub is not asked: unset it" in message
    assert str(tmp_path) in message
    assert "\n" not in message


@pytest.mark.slow
def test_a_command_without_a_network_ends_in_one_line(tmp_path: Path) -> None:
    nobody = "http://127.0.0.1:9"  # where nobody listens
    own = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": nobody, "HF_HOME": str(tmp_path / "hub")}
    words = ["gpart.cli", "fit", "--config", "pictures", "--data.path", "packaged:digits", "--model.model", "me/mine"]
    done = subprocess.run(
        [sys.executable, "-m", *words],
        env={**os.environ, **own},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if line.startswith("gpart: error: ")] == done.stderr.splitlines()[
        -1:
    ]
    assert f"{nobody} cannot be reached: look at the network and HF_ENDPOINT" in done.stderr
