"""Adapters by their name on the hub, against a server on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import hub_stub
import huggingface_hub.constants
import pytest
import torch
from small_adapter import adapted, base

from gpart import load_adapter
from gpart.errors import GPartError, GPartFileError
from gpart.serialization.folder import CONFIG, TENSORS
from gpart.serialization.hub import LIMITS, README, download, has_file, is_hub_name, split_name, upload
from gpart.serialization.sources import fetched, read_adapter

NAME = "me/film"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[hub_stub.Hub]:
    with hub_stub.connected(tmp_path, monkeypatch) as found:
        yield found


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    adapted().save(tmp_path / "saved")
    return {name: (tmp_path / "saved" / name).read_bytes() for name in (CONFIG, TENSORS)}


@pytest.mark.parametrize("name", ["a/b", "a/b@main", "A-1/b_2.x", "a/b@refs/pr/1", "a/b@" + "0" * 40])
def test_what_is_a_name_on_the_hub(name: str) -> None:
    assert is_hub_name(name)
    assert split_name(name)[0] == name.partition("@")[0]


@pytest.mark.parametrize(
    "name",
    [
        *("", "a", "a/b/c", "../b", "a/..", "./b", "/a", "a/", "a/b.ckpt", "a/b.git", "a--b/c", "a/b..c", "a b/c"),
        *("a/b@", "~/b", "a/b@../x", "s3://a/b", "a/b\n", "-a/b", ".a/b", "a/é", "a/" + "b" * 200, "a\\b", "a/b@-x"),
        "a/b?x",
    ],
)
def test_what_is_none(name: str) -> None:
    assert not is_hub_name(name)
    with pytest.raises(GPartError, match="no name on the hub"):
        split_name(name)


def test_an_adapter_is_loaded_by_its_name(hub: hub_stub.Hub, files: dict[str, bytes]) -> None:
    hub.commit(NAME, files)
    trained = adapted()
    loaded = load_adapter(base(), NAME)
    assert torch.equal(loaded.theta, trained.theta)
    x = torch.randn(3, 4)
    assert torch.equal(loaded.model(x), trained.model(x))


def test_the_endpoint_is_asked_at_each_call(
    hub: hub_stub.Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub_stub.running() as other:
        other.commit(NAME, files)
        monkeypatch.setenv("HF_ENDPOINT", other.url)
        assert read_adapter(NAME)[0].size == 32
        assert other.asked
        assert not hub.asked


def test_what_lies_here_comes_first(hub: hub_stub.Hub, tmp_path: Path) -> None:
    adapted().save(tmp_path / "me" / "film")
    assert fetched(NAME) == NAME
    assert read_adapter(NAME)[0].size == 32
    assert not hub.asked


def test_a_revision_is_another_adapter(hub: hub_stub.Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    first = hub.commit(NAME, files)
    other = adapted()
    with torch.no_grad():
        other.theta.fill_(2.0)
    other.save(tmp_path / "other")
    hub.commit(NAME, {name: (tmp_path / "other" / name).read_bytes() for name in files})
    assert torch.equal(read_adapter(NAME)[1]["gpart.default.theta"], torch.full((5,), 2.0))
    assert torch.equal(read_adapter(f"{NAME}@{first}")[1]["gpart.default.theta"], adapted().theta)
    with pytest.raises(GPartFileError, match="no adapter at me/film@nosuch on the hub"):
        read_adapter(f"{NAME}@nosuch")


def test_both_files_are_of_one_commit_though_another_is_pushed_between(
    hub: hub_stub.Hub, files: dict[str, bytes]
) -> None:
    hub.commit(NAME, files)

    def push(name: str) -> None:
        if name == CONFIG:
            hub.commit(NAME, {TENSORS: b"of another commit"})

    hub.before_get = push
    assert read_adapter(NAME)[0].size == 32


def test_without_the_hub_its_cache_answers(
    hub: hub_stub.Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.commit(NAME, files)
    here = download(NAME)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.asked)
    assert download(NAME) == here
    assert len(hub.asked) == asked
    with pytest.raises(
        GPartFileError, match="no adapter at me/other: there is no such folder here, the hub cannot be reached"
    ):
        read_adapter("me/other")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens
    assert download(NAME) == here


def test_only_the_two_files_are_read(hub: hub_stub.Hub, files: dict[str, bytes]) -> None:
    hub.commit(NAME, {**files, "setup.py": b"raise SystemExit", "pytorch_model.bin": b"x", README: b"# card"})
    folder = download(NAME)
    assert sorted(path.name for path in folder.iterdir()) == sorted(files)


def test_a_folder_of_ones_own_gets_the_card_too_and_nothing_of_the_library(
    hub: hub_stub.Hub, files: dict[str, bytes], tmp_path: Path
) -> None:
    hub.commit(NAME, {**files, README: b"# card"})
    assert download(NAME, tmp_path / "here") == tmp_path / "here"
    assert {path.name: path.read_bytes() for path in (tmp_path / "here").iterdir()} == {**files, README: b"# card"}
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("missing", [CONFIG, TENSORS])
def test_a_missing_file_is_named(hub: hub_stub.Hub, files: dict[str, bytes], missing: str) -> None:
    hub.commit(NAME, {name: content for name, content in files.items() if name != missing})
    with pytest.raises(GPartFileError, match=f"no adapter at me/film on the hub: .*{missing}"):
        read_adapter(NAME)


def test_a_missing_repository_says_where_was_looked(hub: hub_stub.Hub) -> None:
    with pytest.raises(
        GPartFileError, match="no adapter at me/film: there is no such folder here, and no such repository"
    ):
        read_adapter(NAME)


@pytest.mark.parametrize("file", [CONFIG, TENSORS])
def test_a_file_that_is_too_large_is_not_downloaded(hub: hub_stub.Hub, files: dict[str, bytes], file: str) -> None:
    hub.commit(NAME, files)
    hub.sizes[file] = LIMITS[file] + 1
    with pytest.raises(GPartError, match=f"me/film: {file} has {LIMITS[file] + 1:,} bytes, more than the"):
        read_adapter(NAME)
    assert not [asked for asked in hub.asked if asked.startswith("GET") and asked.endswith(file)]


@pytest.mark.parametrize("file", [CONFIG, TENSORS])
def test_a_damaged_download_is_refused(hub: hub_stub.Hub, files: dict[str, bytes], file: str) -> None:
    hub.commit(NAME, files)
    hub.damage = lambda name, content: (
        content[:-9] + bytes([content[-9] ^ 1]) + content[-8:] if name == file else content
    )
    with pytest.raises(GPartError, match=r"was changed|is no JSON"):
        load_adapter(base(), NAME)


def test_upload_makes_repository_and_branch(hub: hub_stub.Hub, files: dict[str, bytes]) -> None:
    assert not has_file(NAME, CONFIG)
    url = upload(f"{NAME}@v2", files, "first", private=True)
    assert url == f"{hub.url}/me/film/commit/{hub.branches[NAME]['v2']}"
    assert hub.private == {NAME}
    assert hub.messages == ["first"]
    assert {name: hub.files(NAME, "v2")[name] for name in files} == files
    assert CONFIG not in hub.files(NAME)
    assert has_file(f"{NAME}@v2", CONFIG)
    assert not has_file(NAME, CONFIG)
    upload(f"{NAME}@v2", {README: b"# more"}, "second")
    assert set(hub.files(NAME, "v2")) >= {*files, README}


def test_who_is_not_logged_in_is_told(
    hub: hub_stub.Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.commit(NAME, files)
    hub.private.add(NAME)
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(GPartError, match=r"me/film.*(HF_TOKEN|401)"):
        read_adapter(NAME)
    with pytest.raises(GPartError, match=r"me/film.*(HF_TOKEN|401)"):
        upload(NAME, files, "mine")
    assert not hub.messages
