"""Checkpoints at URLs and in file objects: what is said of a bad one is what is said of a local file."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from lightning.pytorch.plugins import AsyncCheckpointIO

from gpart import get_adapters
from gpart.callbacks import GPartCheckpointIO, load_from_checkpoint
from gpart.errors import GPartError


class Holder:
    """A project's own object."""


def at_url(path: Path, content: bytes | bytearray | None = None) -> str:
    fsspec.filesystem("memory").pipe_file(
        f"/urls/{path.name}", path.read_bytes() if content is None else bytes(content)
    )
    return f"memory://urls/{path.name}"


@pytest.mark.parametrize("plugins", [[], [AsyncCheckpointIO()]])
@pytest.mark.parametrize("weights_only", [None, False])
def test_a_flipped_bit_and_a_cut_at_a_url_are_refused(
    weights_only: Any,
    plugins: list[Any],
    lit_fitted: Any,
    lit_class: Any,
    lit_gpart: Any,
    lit_trainer: Any,
    lit_loader: Any,
) -> None:
    _, _, path = lit_fitted()
    checkpoint, content = torch.load(path, weights_only=True), bytearray(path.read_bytes())
    moments = [state["exp_avg"] for state in checkpoint["optimizer_states"][0]["state"].values()]
    moment = next(value for value in moments if value.numel() == 10)  # no digest of ours is over it
    content[content.index(moment.numpy().tobytes()) + 3] ^= 1
    for bad, said in (
        (content, "was changed, its checksum differs"),
        (content[:-400], "its end is missing"),
    ):
        trainer = lit_trainer(lit_gpart(), plugins=plugins, max_epochs=2)
        with pytest.raises(GPartError, match=rf"memory://urls/{path.name} cannot be read as a checkpoint.*") as error:
            trainer.fit(lit_class(), lit_loader(), ckpt_path=at_url(path, bad), weights_only=weights_only)
        assert said in str(error.value)
        assert "weights_only" not in str(error.value)  # it is not what would help


def test_objects_at_a_url_and_in_a_file_object_are_named(
    lit_fitted: Any, lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    module, _, path = lit_fitted(lit_class(extra=Holder()))
    url, said = at_url(path), r"holds .*test_urls\.Holder.*weights_only=False"
    with pytest.raises(GPartError, match=f"{url} .*{said}"):
        lit_trainer(lit_gpart()).test(lit_class(), lit_loader(), ckpt_path=url)
    fresh = lit_class()
    lit_trainer(lit_gpart()).test(fresh, lit_loader(), ckpt_path=url, weights_only=False, verbose=False)
    theta = get_adapters(module.net)["default"].theta
    assert torch.equal(get_adapters(fresh.net)["default"].theta, theta)
    for source, name in ((url, url), (io.BytesIO(path.read_bytes()), "the BytesIO")):
        with pytest.raises(GPartError, match=f"^{name} .*{said}"):
            load_from_checkpoint(lit_class, source)
        if not isinstance(source, str):
            source.seek(0)
        loaded = load_from_checkpoint(lit_class, source, weights_only=False)
        assert torch.equal(get_adapters(loaded.net)["default"].theta, theta)


def test_the_device_that_is_asked_for_reaches_the_plugin_that_reads(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "a.ckpt")
    asked = []

    def placed(storage: Any, location: str) -> Any:
        asked.append(location)
        return storage

    GPartCheckpointIO().load_checkpoint(tmp_path / "a.ckpt", map_location=placed)
    assert asked == ["cpu"]
