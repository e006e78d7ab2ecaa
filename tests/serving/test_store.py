"""The store gives what the files hold now, within its budget, and nothing from outside its folder."""

from __future__ import annotations

import gc
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from served_models import replace_adapter, spoil, store_adapter

from gpart.errors import GPartError, GPartFileError
from gpart.serialization.folder import CONFIG, TENSORS
from gpart.serving import AdapterStore
from gpart.serving import store as module

TENSOR_BYTES = 4 * (7 + 10 + 2)  # theta, the head's weight and bias
HELD = TENSOR_BYTES + module._OVERHEAD


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(["anna", "ben", "carl"]):
        store_adapter(tmp_path / "all" / name, number)
    return tmp_path / "all"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders that are read from disk."""
    found: list[str] = []
    real = module.read_folder
    monkeypatch.setattr(module, "read_folder", lambda place: found.append(place.name) or real(place))
    monkeypatch.setattr(module, "_WAITS", ())
    return found


def test_what_is_read_is_what_was_saved(folder: Path, same_bits: Callable[..., bool]) -> None:
    saved = store_adapter(folder / "dora", 3, buffers=True)
    got = AdapterStore(folder).get("dora")
    assert same_bits(got.theta, saved.theta)
    expected = {**saved.saved_parameters(), **saved.changed_buffers()}
    assert set(got.others) == set(expected) == {"head.weight", "head.bias", "norm.running_mean"}
    assert all(same_bits(got.others[name], value) for name, value in expected.items())
    assert got.base == saved.manifest().base
    assert got.name == "dora"


def test_it_lists_folders_with_an_adapter_and_reads_none(folder: Path, reads: list[str]) -> None:
    (folder / "empty").mkdir()
    (folder / "file").write_text("")
    for hidden in (".hidden", "a b", "ü", "x" * 65):
        shutil.copytree(folder / "anna", folder / hidden)
    shutil.copytree(folder / "anna", folder / "-9_Z.x")
    assert AdapterStore(folder).names() == ["-9_Z.x", "anna", "ben", "carl"]
    assert not reads


def test_an_adapter_is_read_once_until_a_file_changes(folder: Path, reads: list[str]) -> None:
    store = AdapterStore(folder)
    first = store.get("anna")
    assert store.get("anna") is first
    assert reads == ["anna"]
    new = store_adapter(folder.parent / "new", 9)
    replace_adapter(folder / "anna", folder.parent / "new")
    assert torch.equal(store.get("anna").theta, new.theta)
    assert reads == ["anna", "anna"]


@pytest.mark.parametrize("file", [CONFIG, TENSORS])
def test_a_file_of_the_same_size_and_time_but_in_another_place_is_seen(
    folder: Path, file: str, reads: list[str]
) -> None:
    store, path = AdapterStore(folder), folder / "anna" / file
    store.get("anna")
    stat = path.stat()
    shutil.copy(path, path.with_suffix(".new"))
    os.utime(path.with_suffix(".new"), ns=(stat.st_atime_ns, stat.st_mtime_ns))
    path.with_suffix(".new").replace(path)
    store.get("anna")
    assert reads == ["anna", "anna"]


def test_adapters_come_and_go(folder: Path) -> None:
    store = AdapterStore(folder)
    with pytest.raises(GPartFileError, match="there is no adapter 'dora'"):
        store.get("dora")
    shutil.move(folder / "anna", folder / "dora")
    assert store.get("dora").name == "dora"
    store.get("ben")
    shutil.rmtree(folder / "ben")
    with pytest.raises(GPartFileError, match="there is no adapter 'ben'"):
        store.get("ben")
    assert (store.names(), len(store)) == (["carl", "dora"], 1)


def test_the_last_used_ones_stay_in_memory_within_the_budget(folder: Path, reads: list[str]) -> None:
    store = AdapterStore(folder, max_bytes=2 * HELD)
    store.get("anna")
    store.get("ben")
    assert store.nbytes == 2 * HELD
    store.get("anna")  # so that ben is the one that was not asked for longest
    store.get("carl")
    assert (store.nbytes, len(store)) == (2 * HELD, 2)
    store.get("anna")
    assert reads == ["anna", "ben", "carl"]
    store.get("ben")
    assert reads[-1] == "ben"
    assert store.nbytes == 2 * HELD


def test_a_replaced_adapter_is_counted_once(folder: Path) -> None:
    store = AdapterStore(folder)
    store.get("anna")
    store_adapter(folder / "anna", 5)
    store.get("anna")
    assert store.nbytes == HELD


def test_one_that_is_larger_than_the_budget_is_refused_unread(folder: Path, reads: list[str]) -> None:
    size = sum((folder / "anna" / name).stat().st_size for name in (CONFIG, TENSORS))
    with pytest.raises(GPartError, match=f"its files have {size} bytes, and the store holds at most {size - 1}"):
        AdapterStore(folder, max_bytes=size - 1).get("anna")
    assert not reads


def test_one_that_fits_by_its_files_alone_is_given_but_not_held(folder: Path, reads: list[str]) -> None:
    size = sum((folder / "anna" / name).stat().st_size for name in (CONFIG, TENSORS))
    store = AdapterStore(folder, max_bytes=size)
    assert size < HELD
    store.get("anna")
    assert (len(store), store.nbytes) == (0, 0)
    store.get("anna")
    assert reads == ["anna", "anna"]


def test_a_broken_one_is_an_error_for_its_name_only_until_it_is_mended(folder: Path, reads: list[str]) -> None:
    store = AdapterStore(folder)
    spoil(folder / "ben")
    for _ in range(2):
        with pytest.raises(GPartError, match=r"adapter 'ben' is broken: adapter_model\.safetensors was changed"):
            store.get("ben")
    assert reads == ["ben"]  # what was wrong is remembered
    assert store.get("anna").name == "anna"
    assert store.names() == ["anna", "ben", "carl"]
    spoil(folder / "ben")  # the bit is flipped back
    assert store.get("ben").name == "ben"


def test_one_that_breaks_while_it_is_held_is_not_given_any_more(folder: Path, reads: list[str]) -> None:
    store = AdapterStore(folder)
    store.get("ben")
    spoil(folder / "ben")
    with pytest.raises(GPartError, match="broken"):
        store.get("ben")
    assert store.nbytes == 0


def test_messages_hold_no_path_of_the_server(folder: Path, reads: list[str]) -> None:
    (folder / "anna" / CONFIG).write_text("{")
    (folder / "ben" / TENSORS).unlink()
    spoil(folder / "carl")
    store = AdapterStore(folder)
    for name in ("anna", "ben", "carl"):
        with pytest.raises(GPartError, match=f"adapter '{name}' is broken") as error:
            store.get(name)
        assert str(folder.parent) not in str(error.value)


def test_files_that_are_just_being_replaced_are_waited_for(folder: Path) -> None:
    new = store_adapter(folder.parent / "new", 9)
    shutil.copy(folder.parent / "new" / TENSORS, folder / "anna" / TENSORS)

    def rest() -> None:
        time.sleep(0.1)
        replace_adapter(folder / "anna", folder.parent / "new")

    thread = threading.Thread(target=rest)
    thread.start()
    assert torch.equal(AdapterStore(folder).get("anna").theta, new.theta)
    thread.join()


def test_old_files_that_disagree_are_not_waited_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(folder / "ben")
    for name in (CONFIG, TENSORS):
        os.utime(folder / "ben" / name, (time.time() - 60, time.time() - 60))
    monkeypatch.setattr(module.time, "sleep", lambda seconds: pytest.fail("waited"))
    with pytest.raises(GPartError, match="broken"):
        AdapterStore(folder).get("ben")


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../anna",
        "anna/../ben",
        "/etc",
        "anna/",
        ".anna",
        "a\\b",
        "an na",
        "anna\n",
        "\0",
        "x" * 65,
        "ä",
        3,
        None,
    ],
)
def test_what_is_no_name_is_refused_before_anything_is_looked_at(
    folder: Path, name: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = AdapterStore(folder / ".." / "all")
    monkeypatch.setattr(module.os, "stat", lambda *_: pytest.fail("looked"))
    with pytest.raises(GPartError, match="an adapter's name has 1 to 64 letters"):
        store.get(name)  # type: ignore[arg-type]


def test_links_may_not_leave_the_folder(folder: Path) -> None:
    store_adapter(folder.parent / "secret", 4)
    (folder / "out").symlink_to(folder.parent / "secret")
    (folder / "in").symlink_to(folder / "anna")
    (folder / "half").mkdir()
    shutil.copy(folder / "anna" / CONFIG, folder / "half" / CONFIG)
    (folder / "half" / TENSORS).symlink_to(folder.parent / "secret" / TENSORS)
    (folder / "loop").symlink_to(folder / "loop")
    store = AdapterStore(folder)
    assert store.names() == ["anna", "ben", "carl", "half", "in"]
    assert torch.equal(store.get("in").theta, store.get("anna").theta)
    for name in ("out", "half"):
        with pytest.raises(GPartError, match="is a link that leaves the store's folder"):
            store.get(name)
    with pytest.raises(GPartFileError, match="there is no adapter 'loop'"):
        store.get("loop")


def test_a_store_below_a_link_is_a_store(folder: Path) -> None:
    (folder.parent / "link").symlink_to(folder)
    assert AdapterStore(folder.parent / "link").get("anna").name == "anna"


def test_adapters_share_what_decides_their_layout(folder: Path) -> None:
    store_adapter(folder / "other", 1, seed=1)
    store_adapter(folder / "less", 1, target_modules=["first"])
    store_adapter(folder / "dropped", 1, dropout=0.5)
    store_adapter(folder / "base", 1, base=1)
    store = AdapterStore(folder)
    layout = store.get("anna").layout
    same = {name for name in store.names() if store.get(name).layout is layout}
    assert same == {"anna", "ben", "carl", "dropped", "base"}
    assert store.get("base").base != store.get("anna").base


def test_a_layout_that_no_adapter_has_is_forgotten(folder: Path) -> None:
    store = AdapterStore(folder, max_bytes=HELD)
    store_adapter(folder / "other", 1, seed=1)
    store.get("other")
    key = store.get("anna").layout.key
    gc.collect()
    assert list(store._layouts) == [key]


def test_threads_may_ask_at_the_same_time(folder: Path, reads: list[str]) -> None:
    store, found = AdapterStore(folder, max_bytes=2 * HELD), []

    def ask() -> None:
        found.extend(store.get(name).name == name for _ in range(20) for name in ("anna", "ben", "carl"))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 240
    assert store.nbytes <= 2 * HELD


def test_what_the_store_itself_needs(tmp_path: Path) -> None:
    with pytest.raises(GPartFileError, match="there is no folder"):
        AdapterStore(tmp_path / "none")
    with pytest.raises(GPartError, match="max_bytes must be 1 or more, got 0"):
        AdapterStore(tmp_path, max_bytes=0)
    assert AdapterStore(tmp_path).names() == []


def test_an_adapter_without_theta_is_broken(folder: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    real = module.read_folder

    def without(place: Path) -> object:
        manifest, tensors = real(place)
        return manifest, {
            name: value for name, value in tensors.items() if place.name == "ben" or "theta" not in name
        } | ({"gpart.default.theta": torch.zeros(3)} if place.name == "ben" else {})

    monkeypatch.setattr(module, "read_folder", without)
    store = AdapterStore(folder)
    with pytest.raises(GPartError, match=r"adapter_model.safetensors has no gpart\.default\.theta"):
        store.get("anna")
    with pytest.raises(GPartError, match=r"has shape \[3\], the config has d=7"):
        store.get("ben")
