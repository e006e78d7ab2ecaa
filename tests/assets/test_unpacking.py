"""Members of archives, and folders of archives whose names nobody has listed."""

from __future__ import annotations

import io
import random
import tarfile
import warnings
import zipfile
from pathlib import Path

import pytest

from gpart.assets.unpacking import unpack
from gpart.errors import GPartError

TREE = [("pkg/images/", "images/")]
PICTURES = {"pkg/images/a.jpg": b"first", "pkg/images/deep/er/b-2_x.jpg": b"second"}
HOSTILE = [
    "pkg/images/../x",
    "pkg/images/deep/../../x",
    "pkg/images/..",
    "pkg/images/.",
    "pkg/images//etc/x",
    "pkg/images/C:x",
    "pkg/images/C:/x",
    "pkg/images/..\\x",
    "pkg/images/deep\\x",
    "pkg/images/stream.jpg:x",
    "pkg/images/dot.",
    "pkg/images/blank ",
    "pkg/images/ ",
    "pkg/images/new\nline",
    "pkg/images/~",
    "pkg/images/../",
    "pkg/images/deep/../../",
]


def make(path: Path, content: dict[str, bytes] | list[tuple[str, bytes]]) -> Path:
    """An archive of the kind that the suffix says, with the names as they are."""
    pairs = content.items() if isinstance(content, dict) else content
    if path.suffix == ".whl":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a name that is there twice
            for name, data in pairs:
                zipped.writestr(name, data)
    else:
        with tarfile.open(path, "w:gz") as tarred:
            for name, data in pairs:
                member = tarfile.TarInfo(name.removesuffix("/"))
                member.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
                member.size = len(data)
                tarred.addfile(member, io.BytesIO(data))
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(params=["x.whl", "x.tar.gz"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    (tmp_path / "archives").mkdir()
    return tmp_path / "archives" / request.param


def test_folder_and_member(path: Path, tmp_path: Path) -> None:
    others = {"pkg/images.txt": b"no", "pkg/imagesque/c.jpg": b"no", "images/d.jpg": b"no", "pkg/LICENSE": b"MIT"}
    make(path, {"pkg/images/": b"", "pkg/images/deep/": b"", **PICTURES, **others})
    sizes = unpack(path, [*TREE, ("pkg/LICENSE", "LICENSE")], tmp_path / "out")
    assert sizes == {"images/a.jpg": 5, "images/deep/er/b-2_x.jpg": 6, "LICENSE": 3}
    expected = {"images/a.jpg": b"first", "images/deep/er/b-2_x.jpg": b"second", "LICENSE": b"MIT"}
    assert files(tmp_path / "out") == expected


def test_folder_of_an_archive_in_an_archive(path: Path, tmp_path: Path) -> None:
    inner = make(tmp_path / "inner.tar.gz", PICTURES)
    make(path, {"data/inner.tar.gz": inner.read_bytes()})
    unpack(path, [("data/inner.tar.gz!pkg/images/", "images/")], tmp_path / "out")
    assert files(tmp_path / "out") == {"images/a.jpg": b"first", "images/deep/er/b-2_x.jpg": b"second"}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_refused(path: Path, tmp_path: Path, name: str) -> None:
    make(path, {name: b"evil", **PICTURES})
    with tarfile.open(path) if path.suffix == ".gz" else zipfile.ZipFile(path) as archive:
        names = archive.getnames() if isinstance(archive, tarfile.TarFile) else archive.namelist()
    assert name.removesuffix("/") in [found.removesuffix("/") for found in names]  # the archive does hold it
    with pytest.raises(GPartError, match="could lead out") as caught:
        unpack(path, TREE, tmp_path / "out")
    assert repr(name.removesuffix("/"))[1:-1] in str(caught.value)
    assert str(path) in str(caught.value)
    assert files(tmp_path / "out") == {}
    assert {found.name for found in tmp_path.iterdir()} == {"archives", "out"}


@pytest.mark.parametrize("name", ["../evil.txt", "/evil.txt", "C:\\evil.txt"])
def test_hostile_names_elsewhere_are_not_touched(path: Path, tmp_path: Path, name: str) -> None:
    make(path, {name: b"evil", **PICTURES})
    unpack(path, TREE, tmp_path / "out")
    assert set(files(tmp_path / "out")) == {"images/a.jpg", "images/deep/er/b-2_x.jpg"}
    assert {found.name for found in tmp_path.iterdir()} == {"archives", "out"}


def test_nul_in_a_name_is_refused(tmp_path: Path) -> None:
    """Zipfile cuts such a name when it is read, so that another file than the one in the archive would be written."""
    path = make(tmp_path / "x.whl", {"pkg/images/a.jpg#../x": b"evil"})
    path.write_bytes(path.read_bytes().replace(b"a.jpg#", b"a.jpg\0"))
    assert zipfile.ZipFile(path).namelist() == ["pkg/images/a.jpg"]
    with pytest.raises(GPartError, match=r"a\.jpg\\x00"):
        unpack(path, TREE, tmp_path / "out")
    assert files(tmp_path / "out") == {}


@pytest.mark.parametrize("second", ["pkg/images/a.jpg", "pkg/images/a.jpg/b.jpg", "pkg/images/a.jpg/deep/b.jpg"])
def test_name_that_is_there_twice(path: Path, tmp_path: Path, second: str) -> None:
    make(path, [("pkg/images/a.jpg", b"first"), (second, b"second")])
    with pytest.raises(GPartError, match=r"more than one member would become 'images/a\.jpg"):
        unpack(path, TREE, tmp_path / "out")


@pytest.mark.parametrize("content", [{"pkg/images/": b""}, {"pkg/other.txt": b"x"}, {"pkg/images": b"a file"}])
def test_folder_without_files(path: Path, tmp_path: Path, content: dict[str, bytes]) -> None:
    make(path, content)
    with pytest.raises(GPartError, match=r"has no file below 'pkg/images/'"):
        unpack(path, TREE, tmp_path / "out")


@pytest.mark.parametrize("target", ["/etc/passwd", "../../archives/secret"])
@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_do_not_lead_out_of_a_tar(tmp_path: Path, target: str, kind: bytes) -> None:
    path = tmp_path / "x.tar.gz"
    link = tarfile.TarInfo("pkg/images/link.jpg")
    link.type, link.linkname = kind, target
    with tarfile.open(path, "w:gz") as tarred:
        tarred.addfile(link)
    with pytest.raises(GPartError, match=r"no member 'pkg/images/link\.jpg'"):
        unpack(path, TREE, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.jpg"))


def test_device_in_a_tar_is_no_file(tmp_path: Path) -> None:
    path = tmp_path / "x.tar.gz"
    pipe = tarfile.TarInfo("pkg/images/pipe.jpg")
    pipe.type = tarfile.FIFOTYPE
    with tarfile.open(path, "w:gz") as tarred:
        tarred.addfile(pipe)
    with pytest.raises(GPartError, match=r"'pkg/images/pipe\.jpg' is not a file"):
        unpack(path, TREE, tmp_path / "out")


@pytest.mark.parametrize("keep", [0.3, 0.95])
def test_damaged_archive_names_the_folder(path: Path, tmp_path: Path, keep: float) -> None:
    make(path, {"pkg/images/a.jpg": random.Random(0).randbytes(50_000)})
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(GPartError, match=r"can't read 'pkg/images/', the archive is damaged"):
        unpack(path, TREE, tmp_path / "out")
