"""Adapters and checkpoints at URLs, and in file objects."""

from __future__ import annotations

import io
from pathlib import Path

import fsspec
import pytest
import torch
from small_adapter import adapted, base

from gpart import load_adapter
from gpart.errors import GPartError, GPartFileError
from gpart.serialization.checkpoint_file import load_checkpoint_file
from gpart.serialization.locations import located, write


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fsspec.filesystem("memory").store.clear()
    yield
    assert not [path for path in tmp_path.iterdir() if ":" in path.name]  # no local folder bears a URL's name


@pytest.mark.parametrize("url", ["memory://runs/one", "memory://runs/one/", "file://{tmp}/a b", "memory://deep/er/one"])
def test_an_adapter_saved_at_a_url_loads_from_it(url, tmp_path):
    url = url.format(tmp=tmp_path)
    adapter = adapted()
    adapter.save(url)
    assert torch.equal(load_adapter(base(), url).theta, adapter.theta)
    adapter.save(url)  # over itself


def test_a_file_url_is_a_local_folder_written_like_one(tmp_path):
    adapted().save(f"file://{tmp_path}/new/adapter")
    assert sorted(path.name for path in (tmp_path / "new" / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_half_a_folder_at_a_url_is_refused():
    adapter = adapted()
    adapter.save("memory://half")
    config = fsspec.filesystem("memory").cat_file("/half/adapter_config.json")
    fsspec.filesystem("memory").rm("/half/adapter_config.json")
    with pytest.raises(GPartFileError, match=r"no adapter at memory://half: there is no file adapter_config\.json"):
        load_adapter(base(), "memory://half")
    with torch.no_grad():
        adapter.theta.add_(1)
    adapter.save("memory://half")
    fsspec.filesystem("memory").pipe_file("/half/adapter_config.json", config)  # the old config, the new tensors
    with pytest.raises(GPartError, match="was changed or truncated"):
        load_adapter(base(), "memory://half")
    with pytest.raises(GPartFileError, match="no adapter at memory://nowhere"):
        load_adapter(base(), "memory://nowhere")


def test_a_failure_while_writing_leaves_what_was_at_the_url():
    write(located("memory://run"), {"a": b"old", "b": b"old"})
    with pytest.raises(GPartError, match="memory://run cannot be used"):
        write(located("memory://run"), {"a": b"new", "b": "no bytes"})  # type: ignore[dict-item]
    system = fsspec.filesystem("memory")
    assert (system.cat_file("/run/a"), system.cat_file("/run/b")) == (b"old", b"old")
    write(located("memory://run"), {"a": b"newer"})
    assert system.cat_file("/run/a") == b"newer"


@pytest.mark.parametrize("place", [Path("memory://run/adapter"), "memory:/run/adapter", Path("s3://bucket/adapter")])
def test_a_url_that_lost_a_slash_is_refused_and_makes_no_folder(place):
    with pytest.raises(GPartError, match="is a URL that lost a slash"):
        adapted().save(place)
    with pytest.raises(GPartError, match="is a URL that lost a slash"):
        load_adapter(base(), place)


def test_a_protocol_that_fsspec_does_not_know_is_named():
    with pytest.raises(GPartError, match=r"nosuch://run.* cannot be opened: .*nosuch"):
        adapted().save("nosuch://run")


def test_a_local_name_with_a_colon_is_a_local_name(tmp_path):
    adapted().save("run 12:30/adapter")
    assert load_adapter(base(), tmp_path / "run 12:30" / "adapter").size == 32
    (tmp_path / "run 12:30").rename(tmp_path / "done")


def test_a_checkpoint_is_read_from_paths_urls_and_file_objects(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "a.ckpt")
    content = (tmp_path / "a.ckpt").read_bytes()
    fsspec.filesystem("memory").pipe_file("/a.ckpt", content)
    stream = io.BytesIO(b"head" + content)
    stream.seek(4)
    with (tmp_path / "a.ckpt").open("rb") as file:
        for source in (str(tmp_path / "a.ckpt"), tmp_path / "a.ckpt", "memory://a.ckpt", stream, stream, file):
            assert load_checkpoint_file(source) == {"epoch": 3}


@pytest.mark.parametrize("source", ["memory://bad.ckpt", "stream"])
def test_a_changed_record_is_found_at_a_url_and_in_a_file_object(source):
    torch.save({"a": torch.ones(1000)}, made := io.BytesIO())
    content = bytearray(made.getvalue())
    content[content.index(torch.ones(3).numpy().tobytes()) + 2] ^= 1
    fsspec.filesystem("memory").pipe_file("/bad.ckpt", bytes(content))
    with pytest.raises(
        GPartError, match=r"(bad\.ckpt|the BytesIO) cannot be read as a checkpoint: .* checksum differs"
    ):
        load_checkpoint_file(io.BytesIO(bytes(content)) if source == "stream" else source)
