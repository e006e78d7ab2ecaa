"""Reading past the objects in a file: nothing of it is run, and what is plain comes out as it was written."""

from __future__ import annotations

import argparse
import os
import pickle
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gpart.errors import GPartError
from gpart.serialization.checkpoint_file import load_checkpoint_file
from gpart.serialization.inert import Inert, read_inert


def run(path: str) -> None:
    os.mkdir(path)  # by os, as a hostile file would


class Called:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("executed",)


class Imported:
    def __reduce__(self) -> tuple[Any, ...]:
        return eval, ("__import__('os').mkdir('executed')",)


class State:
    def __getstate__(self) -> dict[str, int]:
        return {"a": 1}

    def __setstate__(self, state: dict[str, int]) -> None:
        run("executed")


class Made:
    def __new__(cls, *args: Any) -> Made:  # noqa: PYI034  # Self came with Python 3.11
        if args:
            run("executed")
        return super().__new__(cls)

    def __getnewargs__(self) -> tuple[int]:
        return (1,)


class Items(dict):
    def __setitem__(self, key: Any, value: Any) -> None:
        run("executed")


class Longer(list):
    def extend(self, items: Any) -> None:
        run("executed")

    append = extend


HOSTILE = {
    "a call": Called(),
    "an evaluation": Imported(),
    "a state": State(),
    "a constructor": Made(),
    "a mapping": Items(a=1),
    "a list": Longer([1, 2]),
    "a call's setter": [nn.Linear(1, 1), Called()],
}


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("kind", HOSTILE)
def test_nothing_is_run(kind: str, protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"evil": HOSTILE[kind], "theta": torch.arange(3)}, "a.ckpt", pickle_protocol=protocol)
    for read in (read_inert, load_checkpoint_file):
        assert torch.equal(read(Path("a.ckpt"))["theta"], torch.arange(3))
    assert not Path("executed").exists()
    torch.load("a.ckpt", weights_only=False)
    assert Path("executed").exists()  # so the file does what it says


def test_setting_attributes_of_what_is_called_does_nothing(tmp_path: Path) -> None:
    """BUILD may set attributes of any object on the stack, torch's functions among them."""
    before = dict(vars(torch._utils._rebuild_tensor_v2))
    pickled = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}U\x04evilK\x01sb."
    torch.save({}, tmp_path / "a.ckpt")

    with zipfile.ZipFile(tmp_path / "a.ckpt") as old, zipfile.ZipFile(tmp_path / "b.ckpt", "w") as new:
        for name in old.namelist():
            new.writestr(name.replace("a/", "b/"), pickled if name.endswith("data.pkl") else old.read(name))
    read_inert(tmp_path / "b.ckpt")
    assert dict(vars(torch._utils._rebuild_tensor_v2)) == before


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_come_out_as_they_were_written(protocol: int, tmp_path: Path) -> None:
    shared = torch.randn(4, 3)
    plain = {
        "view": shared[1:, ::2].t(),
        "bfloat16": shared.bfloat16(),
        "uint16": torch.arange(3).to(torch.uint16),
        "empty": torch.empty(0, 2),
        "parameter": nn.Parameter(shared),
        "ordered": OrderedDict(b=1, a=(None, True, 2**70, b"\xff\x00")),
        "set": {1, "a"},
        "kind": (torch.float16, torch.Size([1, 2]), torch.device("cpu")),
    }
    objects = [nn.Linear(2, 2), argparse.Namespace(a=1), defaultdict(list, a=[1]), np.arange(3), nn.ReLU, {nn.ReLU: 1}]
    torch.save({**plain, "objects": objects}, tmp_path / "a.ckpt", pickle_protocol=protocol)
    found = read_inert(tmp_path / "a.ckpt")
    for key in ("view", "bfloat16", "uint16", "empty", "parameter"):
        assert found[key].dtype == plain[key].dtype
        assert torch.equal(found[key], plain[key])
    for key in ("ordered", "set", "kind"):
        assert found[key] == plain[key]
    assert [type(one) for one in found["objects"]] == [Inert] * 5 + [dict]


def test_a_torchscript_archive_and_a_bare_pickle_are_refused(tmp_path: Path) -> None:
    with pytest.warns((FutureWarning, DeprecationWarning), match="torch.jit"):  # the latter is that of torch 2.10
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "a.ckpt")
    (tmp_path / "b.ckpt").write_bytes(pickle.dumps(Called()))
    for name in ("a.ckpt", "b.ckpt"):
        with pytest.raises(GPartError, match=f"{name} cannot be read"):
            load_checkpoint_file(tmp_path / name)


def test_a_reason_that_is_a_number_alone_says_what_kind_it_is(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "whole.ckpt")
    with zipfile.ZipFile(tmp_path / "whole.ckpt") as old, zipfile.ZipFile(tmp_path / "bad.ckpt", "w") as new:
        for name in old.namelist():  # the pickle asks for its fifth object, and there is none
            new.writestr(name, b"\x80\x02h\x05." if name.endswith("data.pkl") else old.read(name))
    with pytest.raises(GPartError, match=r"bad\.ckpt cannot be read as a checkpoint: KeyError: 5$"):
        load_checkpoint_file(tmp_path / "bad.ckpt")
