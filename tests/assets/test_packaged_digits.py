"""The conversion of scikit-learn's table of digits into folders of pictures."""

from __future__ import annotations

import errno
import gzip
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gpart.assets.digits import ROWS, convert
from gpart.datamodules.vision.folders import read_folders
from gpart.errors import GPartError


def table() -> np.ndarray:
    random = np.random.default_rng(0)
    return np.hstack([random.integers(0, 17, (ROWS, 64)), np.arange(ROWS)[:, None] % 10])


def write(path: Path, rows: np.ndarray) -> Path:
    text = "".join(",".join(str(value) for value in row) + "\n" for row in rows.tolist())
    path.write_bytes(gzip.compress(text.encode()))
    return path


def test_every_row_becomes_its_picture(tmp_path: Path) -> None:
    rows = table()
    (folder := tmp_path / "out").mkdir()
    convert(write(tmp_path / "source", rows), folder)
    assert len(list(folder.rglob("*.png"))) == ROWS
    for row in (0, 1, 13, ROWS - 1):
        with Image.open(folder / str(row % 10) / f"{row:04d}.png") as picture:
            assert picture.mode == "L"
            pixels = np.asarray(picture)
        assert pixels.shape == (8, 8)
        # 16 shades are 255: a shade is 15.9375, to the nearest whole number (the half to the even one)
        wanted = [[round(value * 15.9375) for value in line] for line in rows[row, :64].reshape(8, 8).tolist()]
        assert pixels.tolist() == wanted
    pictures, whole = read_folders(folder, "train")
    assert whole
    assert pictures.classes == tuple("0123456789")
    assert len(pictures.labels) == ROWS


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda rows: rows[:-1], r"shape \(1796, 65\), expected \(1797, 65\)"),
        (lambda rows: rows[:, 1:], r"shape \(1797, 64\), expected \(1797, 65\)"),
        (lambda rows: rows + (np.arange(65) == 3), r"shades from 0 to 17, expected 0 to 16"),
        (lambda rows: rows + (np.arange(65) == 64), r"labels \[1, .*10\], expected 0 to 9"),
    ],
)
def test_another_table_is_refused_and_nothing_written(tmp_path: Path, damage: object, message: str) -> None:
    assert callable(damage)
    (folder := tmp_path / "out").mkdir()
    with pytest.raises(GPartError, match=message):
        convert(write(tmp_path / "source", damage(table())), folder)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [b"0,1", gzip.compress(b"a,b\n"), gzip.compress(b"0,1\n" * 99)[:-9]],
    ids=["not packed", "no numbers", "cut off"],
)
def test_what_is_no_table_is_refused(tmp_path: Path, content: bytes) -> None:
    (folder := tmp_path / "out").mkdir()
    (source := tmp_path / "source").write_bytes(content)
    with pytest.raises(GPartError, match="source is no table of digits"):
        convert(source, folder)
    assert list(folder.iterdir()) == []


def test_a_failing_disk_is_not_taken_for_a_damaged_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> bytes:
        raise OSError(errno.EIO, "the disk failed")

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(OSError, match="the disk failed") as caught:
        convert(tmp_path / "source", tmp_path)
    assert not isinstance(caught.value, GPartError)
