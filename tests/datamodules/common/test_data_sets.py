"""A folder's rows are those of its files, whatever was read before from a folder of its name."""

from __future__ import annotations

import os
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
from pyarrow import parquet

from gpart.datamodules import GLUEDataModule
from gpart.datamodules.common.data_sets import load_splits

CARD = """---
configs:
- config_name: cola
  data_files:
  - split: train
    path: cola/train-*
  - split: validation
    path: cola/validation-*
---
"""


def glue(folder: Path, text: str, rows: int = 3) -> Path:
    """A copy of nyu-mll/glue with one task, whose every sentence is this text; in the hub's layout."""
    (folder / "cola").mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(CARD)
    columns = {"sentence": [text] * rows, "label": [0, 1] * (rows // 2) + [0] * (rows % 2), "idx": list(range(rows))}
    for split in ("train", "validation"):
        parquet.write_table(pa.table(columns), folder / "cola" / f"{split}-00000-of-00001.parquet")
    return folder


def first(folder: Path) -> str:
    return str(load_splits(str(folder), "cola", damaged="it", missing="none")["train"][0]["sentence"])


@pytest.mark.usefixtures("own_cache")
def test_another_folder_of_the_same_name_has_its_own_rows(tmp_path: Path) -> None:
    assert first(glue(tmp_path / "a" / "glue", "one")) == "one"
    assert first(glue(tmp_path / "b" / "glue", "two")) == "two"
    assert first(tmp_path / "a" / "glue") == "one"


@pytest.mark.usefixtures("own_cache")
def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    folder = glue(tmp_path / "glue", "one")
    assert first(folder) == "one"
    assert first(glue(folder, "two")) == "two"


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize(("text", "later"), [("two", 1), ("longer by far", 0)])
def test_size_and_time_both_tell_of_a_change(tmp_path: Path, text: str, later: int) -> None:
    folder = glue(tmp_path / "glue", "one")
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert first(folder) == "one"
    glue(folder, text)
    for path, time in times.items():
        os.utime(path, ns=(0, time + later * path.name.startswith("train")))
    assert first(folder) == text


def test_an_unchanged_folder_is_prepared_once(tmp_path: Path, own_cache: Path) -> None:
    folder = glue(tmp_path / "glue", "one")
    load_splits(str(folder), "cola", damaged="it", missing="none")
    before = {path: path.stat().st_mtime_ns for path in own_cache.rglob("*.arrow")}
    load_splits(str(folder), "cola", damaged="it", missing="none")
    assert before
    assert before == {path: path.stat().st_mtime_ns for path in own_cache.rglob("*.arrow")}


@pytest.mark.usefixtures("own_cache")
def test_datasets_itself_still_needs_this(tmp_path: Path) -> None:
    """Where this fails, data_sets.py is no longer needed."""
    folders = [glue(tmp_path / name / "glue", text) for name, text in (("a", "one"), ("b", "two"))]
    found = [datasets.load_dataset(str(folder), "cola")["train"][0]["sentence"] for folder in folders]
    assert found == ["one", "one"]


@pytest.mark.usefixtures("own_cache")
def test_glue_reads_an_edited_copy(tmp_path: Path, tiny_encoder: Path) -> None:
    seen = []
    for text in ("old", "new words"):
        data = GLUEDataModule("cola", model=str(tiny_encoder), path=str(glue(tmp_path / "glue", text, 40)))
        data.setup("fit")
        seen.append(data.parts["train"][0]["input_ids"])
    assert seen[0] != seen[1]
