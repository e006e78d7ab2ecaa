"""A user's own folders: what is wrong is named before the first step, for all parts; plain folders are labelled."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gpart.datamodules import ImageDataModule
from gpart.datamodules.vision import checking
from gpart.datamodules.vision.reading import FromFiles
from gpart.errors import GPartError, GPartFileError


@pytest.fixture
def data(tiny_processor: Path) -> Any:
    return lambda path, **more: ImageDataModule(**{"path": str(path), "model": str(tiny_processor), **more})


@pytest.fixture
def three_parts(tmp_path: Path, image_folders: Any) -> Path:
    for part, count, first in (("train", 8, 1), ("val", 3, 50), ("test", 4, 100)):
        image_folders.class_folders(tmp_path / "own" / part, ["cat", "dog"], count, first)
    return tmp_path / "own"


def encoded(kind: str, size: int = 64) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)).save(stream, kind)
    return stream.getvalue()


def floats() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.ones((8, 8), dtype=np.float32)).save(stream, "TIFF")
    return stream.getvalue()


PNG, JPEG, WEBP = (encoded(kind) for kind in ("PNG", "JPEG", "WEBP"))
BAD = {
    "a jpeg cut short": JPEG[: len(JPEG) // 2],
    "a png cut short": PNG[: len(PNG) // 2],
    "a png with a wrong byte": PNG[:5000] + bytes([PNG[5000] ^ 255]) + PNG[5001:],
    "a webp cut short": WEBP[: len(WEBP) // 2],
    "empty": b"",
    "a page": b"<html>404 not found</html>",
    "floating-point": floats(),
}


@pytest.mark.parametrize("kind", BAD)
def test_every_kind_of_damage_is_found(kind: str, tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(BAD[kind])
    fault = checking.fault_of(FromFiles([str(tmp_path / "bad")]), 0)
    assert fault
    assert "\n" not in fault


@pytest.mark.parametrize("whole", [PNG, JPEG, WEBP])
def test_whole_pictures_pass(whole: bytes, tmp_path: Path) -> None:
    (tmp_path / "good").write_bytes(whole)
    assert checking.fault_of(FromFiles([str(tmp_path / "good")]), 0) is None


def test_a_file_that_has_gone_is_found(tmp_path: Path) -> None:
    assert "No such file" in str(checking.fault_of(FromFiles([str(tmp_path / "gone.png")]), 0))


@pytest.mark.parametrize(("part", "number"), [("train", 3), ("val", 51), ("test", 102)])
def test_a_damaged_picture_of_any_part_stops_the_fit_before_it_begins(
    part: str, number: int, data: Any, three_parts: Path
) -> None:
    name = f"{part}/dog/dog_{number}.png"
    (three_parts / name).write_bytes(b"nothing")
    with pytest.raises(GPartError, match=re.escape(f"{three_parts}: 1 bad: {part}: {name}: cannot identify image")):
        data(three_parts).setup("fit")


def test_all_that_is_wrong_is_told_at_once(data: Any, three_parts: Path, image_folders: Any) -> None:
    image_folders.class_folders(three_parts / "test", ["bird"], 2)
    image_folders.class_folders(three_parts / "val", ["cow"], 2)
    (three_parts / "train" / "empty").mkdir()
    for number in range(1, 6):
        (three_parts / "train" / "cat" / f"cat_{number}.png").write_bytes(b"nothing")
    with pytest.raises(GPartError) as caught:
        data(three_parts).setup("fit")
    told = str(caught.value)
    assert told.startswith(f"{three_parts}: 8 bad: train: the class folder {three_parts}/train/empty holds 0 pictures")
    assert f"val: the class {three_parts}/val/cow is none of the 2 training classes: ['cat', 'dog']; " in told
    assert f"test: the class {three_parts}/test/bird is none of the 2 training classes: ['cat', 'dog']; " in told
    assert "train: train/cat/cat_2.png: cannot" in told
    assert told.endswith("; and 3 more (on_bad_row=skip leaves such pictures out)")
    assert "cat_3" not in told


def test_the_test_alone_looks_at_its_own_pictures(data: Any, three_parts: Path) -> None:
    (three_parts / "train" / "cat" / "cat_1.png").write_bytes(b"nothing")
    own = data(three_parts)
    own.setup("test")
    assert len(own.parts["test"]) == 8
    with pytest.raises(GPartError, match=r"train: train/cat/cat_1\.png"):
        own.setup("validate")


def test_skip_leaves_them_out_of_each_part_and_says_how_many(data: Any, three_parts: Path, image_folders: Any) -> None:
    image_folders.class_folders(three_parts / "test", ["bird"], 2)
    (three_parts / "train" / "ant").mkdir()
    for name in ("train/dog/dog_3.png", "val/dog/dog_51.png", "test/dog/dog_102.png"):
        (three_parts / name).write_bytes(b"nothing")
    own = data(three_parts, on_bad_row="skip")
    with pytest.warns(UserWarning, match=re.escape(f"{three_parts}: 5 left out: train: the class folder")) as said:
        own.setup("fit")
    assert any("val/dog/dog_51.png" in str(each.message) for each in said)
    assert {part: len(own.parts[part]) for part in ("train", "val", "test")} == {"train": 15, "val": 5, "test": 7}
    assert own.labels == ("cat", "dog")
    for images in own.parts.values():
        list(images)  # all can be read


def test_a_class_of_which_nothing_is_left_is_refused(data: Any, three_parts: Path) -> None:
    for path in (three_parts / "train" / "dog").iterdir():
        path.write_bytes(b"nothing")
    for path in (three_parts / "val" / "dog").iterdir():
        path.write_bytes(b"nothing")
    with pytest.warns(UserWarning, match="11 left out"), pytest.raises(GPartError, match=r"classes \['dog'\] is left"):
        data(three_parts, on_bad_row="skip").setup("fit")


def test_a_part_of_which_nothing_is_left_is_refused(data: Any, three_parts: Path) -> None:
    for path in (three_parts / "test").rglob("*.png"):
        path.write_bytes(b"nothing")
    with (
        pytest.warns(UserWarning, match="8 left out"),
        pytest.raises(GPartError, match="none of the 8 pictures of test"),
    ):
        data(three_parts, on_bad_row="skip").setup("fit")


def test_a_picture_in_two_parts_cut_from_one_folder_is_looked_at_once(
    data: Any, tmp_path: Path, image_folders: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_folders.class_folders(tmp_path / "own", ["cat", "dog"], 20)
    looked: list[int] = []
    monkeypatch.setattr(checking, "fault_of", lambda read, row: looked.append(row))
    own = data(tmp_path / "own")
    own.setup("fit")
    assert sorted(looked) == list(range(40))
    own.setup("test")
    assert len(looked) == 40
    (tmp_path / "own" / "empty").mkdir()
    with pytest.raises(GPartError, match=r"own: 1 bad: train: the class folder .*empty holds 0 pictures"):
        data(tmp_path / "own").setup("fit")  # told once, though both parts are cut from it


def test_one_rank_looks_and_the_others_are_told(data: Any, three_parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of two ranks: it reads no picture, and leaves out what the first one has found."""

    class Strategy:
        def broadcast(self, value: Any) -> Any:
            assert value is None
            return {"train": {3: "damaged"}, "test": {}}

    class Second:
        is_global_zero, strategy, lightning_module, world_size, global_rank = False, Strategy(), None, 2, 1

    monkeypatch.setattr(checking, "fault_of", lambda read, row: pytest.fail("a picture was read"))
    own = data(three_parts, on_bad_row="skip")
    own.trainer = Second()
    own.setup("fit")
    assert len(own.parts["train"]) == 15
    assert 3 not in own.parts["train"].chosen


def test_the_policy_is_for_own_folders(data: Any, three_parts: Path) -> None:
    with pytest.raises(GPartError, match=r"on_bad_row must be one of \['error', 'skip'\], got 'drop'"):
        data(three_parts, on_bad_row="drop")
    with pytest.raises(GPartError, match="on_bad_row='skip' is for dataset 'imagefolder', got 'hub'"):
        data(three_parts, dataset="hub", on_bad_row="skip")


# The held-out part


def test_own_folders_are_held_to_it(data: Any, tmp_path: Path, image_folders: Any) -> None:
    image_folders.class_folders(tmp_path / "train", [f"class_{at}" for at in range(6)], 5)
    image_folders.class_folders(tmp_path / "test", ["class_0"], 2, first=100)
    own = data(tmp_path)
    own.setup("fit")
    assert sorted(own.parts["val"].pictures.labels[row] for row in own.parts["val"].chosen) == sorted([*range(6)] * 2)
    with pytest.raises(
        GPartError, match=r"held_out=0.3 holds 9 of 30 rows out.* 0.4; or add a folder val beside train"
    ):
        data(tmp_path, held_out=0.3).setup("fit")


# A table of names and labels


def table(folder: Path, rows: list[dict[str, Any]], kind: str = "csv") -> Path:
    path = folder / f"metadata.{kind}"
    if kind == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["file_name", "label", "taken"])
            writer.writeheader()
            writer.writerows([{"taken": "2026", **row} for row in rows])
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def listed(tmp_path: Path, image_folders: Any) -> Path:
    for part, count in (("train", 20), ("test", 6)):
        for number in range(count):
            image_folders.save(tmp_path / "listed" / part / "shot" / f"{number}.png")
    return tmp_path / "listed"


def rows_of(count: int) -> list[dict[str, Any]]:
    return [{"file_name": f"shot/{number}.png", "label": ["zebra", "ape"][number % 2]} for number in range(count)]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_table_gives_the_classes(kind: str, listed: Path, data: Any) -> None:
    table(listed / "train", rows_of(20), kind)
    table(listed / "test", rows_of(6)[:5], kind)
    own = data(listed)
    own.setup("fit")
    assert own.labels == ("ape", "zebra")
    assert {part: len(own.parts[part]) for part in own.parts} == {"train": 15, "val": 5, "test": 5}
    for part in own.parts:
        for row in own.parts[part].chosen:
            number = int(Path(own.parts[part].pictures.names[row]).stem)
            assert own.labels[own.parts[part].pictures.labels[row]] == ["zebra", "ape"][number % 2]


def test_a_table_without_splits_is_cut(listed: Path, data: Any) -> None:
    table(listed / "train", rows_of(20))
    own = data(listed / "train")
    own.setup("fit")
    assert {part: len(own.parts[part]) for part in own.parts} == {"train": 12, "val": 4, "test": 4}


def test_what_is_wrong_in_a_table_is_told_by_its_line(listed: Path, data: Any) -> None:
    path = table(listed / "train", rows_of(20))
    wrong = [{"file_name": "shot/99.png", "label": "ape"}, {"file_name": "shot/3.png", "label": " "}]
    other = table(listed / "test", [*rows_of(4), *wrong, {"file_name": "shot/0.png", "label": "ape"}])
    with pytest.raises(GPartError) as caught:
        data(listed).setup("fit")
    told = str(caught.value)
    assert f"3 bad: test: line 6 of {other}: there is no file file_name='shot/99.png'" in told
    assert f"test: line 7 of {other}: shot/3.png has no class, but label=' '" in told
    assert f"test: line 8 of {other}: shot/0.png is listed twice" in told
    own = data(listed, on_bad_row="skip")
    with pytest.warns(UserWarning, match="3 left out"):
        own.setup("test")
    assert len(own.parts["test"]) == 4
    path.write_text("name,label\nshot/1.png,ape\n")
    with pytest.raises(GPartError, match=r"line 2 of .*metadata.csv must have file_name and label, got {'name'"):
        data(listed).setup("fit")


# Plain folders


def files(own: ImageDataModule) -> list[str]:
    return [name for batch in own.predict_dataloader() for name in batch["file"]]


def test_a_plain_folder_is_labelled_nested_or_not(data: Any, tmp_path: Path, image_folders: Any) -> None:
    for name in ("new/1.png", "new/more/2.jpg", "new/more/deep/3.png"):
        image_folders.save(tmp_path / name)
    own = data(tmp_path / "new")
    own.setup("predict")
    assert files(own) == ["1.png", "more/2.jpg", "more/deep/3.png"]
    assert "labels" not in next(iter(own.predict_dataloader()))


def test_class_folders_without_a_test_split_are_labelled_whole(data: Any, tmp_path: Path, image_folders: Any) -> None:
    image_folders.class_folders(tmp_path / "own", ["cat", "dog"], 10)
    own = data(tmp_path / "own")
    own.setup("fit")
    own.setup("predict")
    assert len(files(own)) == 20


def test_a_folder_with_a_test_split_has_that_labelled(data: Any, three_parts: Path) -> None:
    own = data(three_parts)
    own.setup("predict")
    assert len(files(own)) == 8
    assert all(name.startswith("test/") for name in files(own))
    shutil.rmtree(three_parts / "test")
    own = data(three_parts)
    own.setup("predict")
    assert {name.split("/")[0] for name in files(own)} == {"val"}  # which is then the test split


def test_a_damaged_picture_to_label_is_named_or_left_out(data: Any, tmp_path: Path, image_folders: Any) -> None:
    for name in ("1.png", "2.png"):
        image_folders.save(tmp_path / "new" / name)
    (tmp_path / "new" / "1.png").write_bytes(b"nothing")
    with pytest.raises(GPartError, match=r"1 bad: predict: 1\.png: cannot identify"):
        data(tmp_path / "new").setup("predict")
    own = data(tmp_path / "new", on_bad_row="skip")
    with pytest.warns(UserWarning, match="1 left out: predict: 1.png"):
        own.setup("predict")
    assert files(own) == ["2.png"]


def test_a_folder_without_pictures_is_named(data: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("to do")
    with pytest.raises(GPartError, match=re.escape(f"the folder {tmp_path} holds 0 pictures")):
        data(tmp_path).setup("predict")
    with pytest.raises(GPartFileError, match=r"no folder of pictures at .*nowhere"):
        data(tmp_path / "nowhere").setup("predict")


# The model


def test_the_data_follow_the_models_setting(three_parts: Path, tiny_processor: Path) -> None:
    class Module:
        hparams = {"model": str(tiny_processor)}  # noqa: RUF012

    class Run:
        is_global_zero, lightning_module = True, Module()

        class strategy:
            broadcast = staticmethod(lambda value: value)

    own = ImageDataModule(path=str(three_parts))
    with pytest.raises(GPartError, match="model=None of the data, and the LightningModule's is None"):
        own.setup("fit")
    own.trainer = Run()
    own.setup("fit")
    assert own.settings.size == (16, 16)
