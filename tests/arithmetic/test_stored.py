"""An adapter without a model: read from real files, taken from a live one, refused where it is not whole."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from many_layers import adapted

from gpart.arithmetic import Stored, norm, read
from gpart.errors import GPartError, GPartFileError

FILES = Path(__file__).parents[1] / "files"


@pytest.mark.parametrize("version", ["0.1.0", "padding_format_1"])
def test_a_folder_and_a_checkpoint_of_old_versions_are_read(version: str) -> None:
    folder, checkpoint = read(FILES / version / "adapter"), read(FILES / version / "run.ckpt")
    for stored in (folder, checkpoint):
        assert stored.layout.size == stored.manifest.size
        assert norm(stored) > 0
    assert folder.manifest.config == checkpoint.manifest.config
    assert folder.source == str(FILES / version / "adapter")


def test_a_folder_is_read_as_the_live_adapter_is(tmp_path: Path) -> None:
    adapter = adapted(d=11, target_modules=["qkv"], modules_to_save=["head"])
    adapter.model.seen.add_(1.0)
    adapter.save(tmp_path / "adapter")
    live, stored = Stored.of(adapter), read(tmp_path / "adapter")
    assert stored.manifest == live.manifest
    assert set(stored.tensors) == set(live.tensors) == {"gpart.default.theta", "head.weight", "head.bias", "seen"}
    assert all(torch.equal(stored.tensors[name], live.tensors[name]) for name in live.tensors)
    live.save(tmp_path / "again")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "adapter" / name).read_bytes()


def test_a_live_one_is_copied_also_while_merged() -> None:
    adapter = adapted(d=11, target_modules=["qkv"])
    before = Stored.of(adapter)
    adapter.merge()
    merged = Stored.of(adapter)
    assert merged.manifest == before.manifest
    assert torch.equal(merged.theta, before.theta)
    adapter.theta.data.zero_()
    assert merged.theta.any()
    assert not merged.theta.requires_grad


def test_what_is_not_there_is_a_file_error(tmp_path: Path) -> None:
    with pytest.raises(GPartFileError, match="no adapter at"):
        read(tmp_path / "nothing")
    with pytest.raises(GPartFileError, match="no checkpoint at"):
        read(tmp_path / "nothing.ckpt")


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({}, r"a file has no gpart.default.theta; its tensors are \[\]"),
        ({"gpart.other.theta": torch.zeros(11)}, r"its tensors are \['gpart.other.theta'\]"),
        ({"gpart.default.theta": torch.zeros(12)}, r"torch.float32 of shape \[12\], needed are 11 floats"),
        ({"gpart.default.theta": torch.zeros(11, 1)}, r"shape \[11, 1\]"),
        ({"gpart.default.theta": torch.zeros(11, dtype=torch.int64)}, r"is torch.int64 of shape"),
        ({"gpart.default.theta": torch.full((11,), math.nan)}, "11 of the 11 numbers"),
        ({"gpart.default.theta": torch.zeros(11), "seen": torch.zeros(2).to_sparse()}, "without plain numbers"),
        ({"gpart.default.theta": torch.zeros(11, device="meta")}, "without plain numbers"),
        ({"gpart.default.theta": torch.zeros(11), "seen": "text"}, "seen holds a str"),
    ],
)
def test_tensors_that_are_no_adapters_are_refused(tensors: dict[str, Any], said: str) -> None:
    manifest = adapted(d=11, target_modules=["qkv"]).manifest()
    with pytest.raises(GPartError, match=said):
        Stored(manifest, tensors, "a file")


def test_a_name_or_a_d_that_cannot_be_is_refused() -> None:
    stored = Stored.of(adapted(d=11, target_modules=["qkv"]))
    with pytest.raises(GPartError, match="the adapter: an adapter's name consists of letters"):
        Stored(replace(stored.manifest, name="a.b"), stored.tensors)
    with pytest.raises(GPartError, match="has D = 53"):
        Stored(replace(stored.manifest, size=53), stored.tensors)
