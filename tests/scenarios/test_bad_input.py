"""What a user can get wrong: one clear error of the documented type, and the model as it was, to the bit.

Each row of the table says what is done, the error, and what it has to say: both what was asked for and what there was.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save
from torch import nn
from torch.nn.utils import parametrize

from gpart import GPartConfig, attach, get_adapters, load_adapter
from gpart.callbacks import GPartCallback, LinearProbe, PeftCallback, load_from_checkpoint
from gpart.datamodules import GLUEDataModule, ImageDataModule, MathDataModule, MovieReviewDataModule
from gpart.serialization.folder import CONFIG, TENSORS, _content_hash

Row = tuple[str, Callable[["Bench"], Any], type[Exception], str]
SETTINGS = {"d": 5, "target_modules": ["query"], "modules_to_save": ["head"]}


@dataclass
class Bench:
    """A place to go wrong in: a model without an adapter, one adapter on disk, one checkpoint, and the fixtures."""

    folder: Path
    model: nn.Module
    fixture: Callable[[str], Any]
    state: Any = None
    undo: Callable[[], Any] = lambda: None
    trained: bool = False

    def attach(self, **change: Any) -> Any:
        return attach(self.model, GPartConfig(**{**SETTINGS, "modules_to_save": None, **change}))

    # The adapter folder.

    def saved(self) -> Path:
        """An adapter's folder, of a model like this one."""
        model = net()
        adapter = attach(model, GPartConfig(**SETTINGS))
        with torch.no_grad():
            adapter.theta.copy_(torch.arange(5.0))
        adapter.save(self.folder / "adapter")
        return self.folder / "adapter"

    def described(self, change: Callable[[dict[str, Any]], Any]) -> Any:
        """Loads an adapter whose description was changed by someone who knows how to make the checksum."""
        folder = self.saved()
        described = json.loads((folder / CONFIG).read_text())
        described.pop("sha256")
        change(described)
        self.write(folder, described)
        return load_adapter(self.model, folder)

    @staticmethod
    def write(folder: Path, described: dict[str, Any]) -> None:
        text = json.dumps(described)
        (folder / CONFIG).write_text(json.dumps({**described, "sha256": _content_hash(text)}))

    def tensors(self, change: Callable[[dict[str, torch.Tensor]], Any]) -> Any:
        """Loads an adapter whose tensors were changed, and both checksums with them."""
        folder = self.saved()
        tensors = load_file(folder / TENSORS)
        change(tensors)
        content = save(tensors)
        (folder / TENSORS).write_bytes(content)
        described = json.loads((folder / CONFIG).read_text())
        described.pop("sha256")
        self.write(folder, {**described, "tensors_sha256": hashlib.sha256(content).hexdigest()})
        return load_adapter(self.model, folder)

    def raw(self, name: str, content: bytes) -> Any:
        """Loads an adapter of which one file holds something else."""
        folder = self.saved()
        (folder / name).write_bytes(content)
        return load_adapter(self.model, folder)

    def file(self, name: str, content: bytes) -> Path:
        (self.folder / name).write_bytes(content)
        return self.folder / name

    # Lightning.

    def checkpoint(self, method: Any = None) -> Path:
        """A checkpoint of the fixtures' project."""
        return self.fixture("lit_fitted")(None, method)[2]

    def resume(self, path: Path, method: Any = None, **more: Any) -> Any:
        """Goes on from a checkpoint, with this bench's model as the project's network."""
        module = self.fixture("lit_class")()
        self.model, self.trained = module.net, True
        self.state = self.fixture("state_of")(self.model)
        if isinstance(method, LinearProbe):  # has no detach: what it freezes is trained again by setting the flags
            self.undo = lambda: self.model.requires_grad_(True)
        trainer = self.fixture("lit_trainer")(method or self.fixture("lit_gpart")(), max_epochs=2, **more)
        trainer.fit(module, self.fixture("lit_loader")(), ckpt_path=path)

    def fit(self, **settings: Any) -> Any:
        """Fits the fixtures' project by these settings."""
        module = self.fixture("lit_class")()
        self.model, self.trained = module.net, True
        self.state = self.fixture("state_of")(self.model)
        trainer = self.fixture("lit_trainer")(self.fixture("lit_gpart")(**settings), max_epochs=1)
        trainer.fit(module, self.fixture("lit_loader")())

    def edited(self, change: Callable[[dict[str, Any]], Any]) -> Path:
        """A checkpoint that was changed and written again."""
        path = self.checkpoint()
        checkpoint = torch.load(path, weights_only=True)
        change(checkpoint)
        torch.save(checkpoint, path)
        return path

    # Data.

    def data(self, make: Any, stage: str = "fit", **settings: Any) -> Any:
        module = make(**settings)
        module.prepare_data()
        module.setup(stage)
        return module

    def glue(self, **settings: Any) -> Any:
        given = {"task": "rte", "model": str(self.fixture("tiny_encoder")), "path": str(self.fixture("glue_folder"))}
        return self.data(GLUEDataModule, **{**given, **settings})

    def images(self, **settings: Any) -> Any:
        given = {"dataset": "imagefolder", "model": str(self.fixture("tiny_processor")), "path": str(self.folder)}
        return self.data(ImageDataModule, **{**given, **settings})

    def math(self, **settings: Any) -> Any:
        return self.data(MathDataModule, model=str(self.fixture("tiny_causal")("llama")), **settings)

    def reviews(self, lines: list[str] | None = None, **settings: Any) -> Any:
        path = None if lines is None else self.file("reviews.txt", "\n".join(lines).encode())
        given = {"model": str(self.fixture("tiny_encoder")), **({} if path is None else {"path": str(path)})}
        return self.data(MovieReviewDataModule, **{**given, **settings})


def net() -> nn.Module:
    torch.manual_seed(0)
    model = nn.ModuleDict({"body": nn.ModuleDict({"query": nn.Linear(4, 6), "drop": nn.Dropout()})})
    model["head"] = nn.Linear(6, 2)
    model["words"] = nn.Embedding(5, 4)
    model["out"] = nn.Linear(4, 5, bias=False)
    model["out"].weight = model["words"].weight
    return model


CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"d": 0}, "d must be a whole number, 1 or more, got 0"),
    ({"d": -3}, "got -3"),
    ({"d": 2.0}, r"got 2\.0"),
    ({"d": True}, "got True"),
    ({"d": "5"}, "got '5'"),
    ({"seed": -1}, "seed must be .* got -1"),
    ({"seed": 1 << 64}, "seed must be"),
    ({"seed": 0.5}, "seed must be"),
    ({"bias": "some"}, "'none', 'all', got 'some'"),
    ({"dropout": 1.0}, r"below 1, got 1\.0"),
    ({"dropout": -0.1}, "dropout must be"),
    ({"dropout": "0.1"}, "dropout must be"),
    ({"isometric": 1}, "isometric must be true or false, got 1"),
    ({"target_modules": []}, "target_modules must be a non-empty list"),
    ({"target_modules": ""}, "target_modules must be"),
    ({"target_modules": [1]}, r"got \[1\]"),
    ({"target_modules": "("}, "no valid regular expression"),
    ({"target_modules": "a{99999999999}"}, "no valid regular expression"),
    ({"target_modules": "(" * 20_000}, "no valid regular expression"),
    ({"d": float("nan")}, "got nan"),
    ({"dropout": float("nan")}, "got nan"),
    ({"isometric": None}, "got None"),
    ({"target_modules": {3}}, "must be a non-empty list of names or a regular expression"),
    ({"exclude_modules": "["}, "exclude_modules is no valid regular expression"),
    ({"modules_to_save": "heads"}, "modules_to_save must be a list of names or 'head', got 'heads'"),
    ({"modules_to_save": "head"}, "modules_to_save='head': .* does not tell which of its modules is the head"),
    ({"slices": {"query": [[2, 1]]}}, r"\[2, 1\] after 0"),
    ({"slices": {"query": [[0, 2], [1, 3]]}}, r"\[1, 3\] after 2"),
    ({"slices": {"query": [[0]]}}, r"got \[0\]"),
    ({"slices": {"query": "0:2"}}, "'0:2'"),
    ({"slices": ["query"]}, "must map"),
]


FITS: list[tuple[dict[str, Any], str]] = [
    ({"d": 25}, r"d=25 is more than the 24 weights that target_modules=\['query'\]"),
    ({"target_modules": ["value"]}, "'value' matches no module .* there are .*'query'"),
    ({"target_modules": ["query", "value"]}, "'value' matches no module"),
    ({"target_modules": "query"}, "'query' matches no module"),
    ({"target_modules": ["body"]}, r"matches body \(ModuleDict\), which cannot be adapted"),
    ({"target_modules": ["drop"]}, r"Dropout"),
    ({"modules_to_save": ["tail"]}, "'tail' matches no module with parameters; there are .*'head'"),
    ({"modules_to_save": ["head", "drop"]}, "'drop' matches no module with parameters"),
    ({"modules_to_save": ["body"]}, r"left by .* modules_to_save=\['body'\]"),
    ({"exclude_modules": ["nothing"]}, "'nothing' matches no module"),
    ({"exclude_modules": ["query"]}, r"left by exclude_modules=\['query'\]"),
    ({"slices": {"query": [[0, 7]]}}, r"slices reach to 7, but body\.query\.weight has 6"),
    ({"slices": {"head": [[0, 1]]}}, "'head' matches none of the adapted layers"),
    ({"slices": {"query": [[0, 1]], "body.query": [[0, 1]]}}, "both match"),
    ({"target_modules": ["words"], "modules_to_save": ["out"]}, r"words\.weight is tied to .*\['out'\]"),
]


def _parametrized() -> nn.Module:
    layer = nn.Linear(4, 4)
    parametrize.register_parametrization(layer, "weight", nn.Identity())
    return layer


LAYERS = [
    (lambda: nn.Embedding(5, 4, sparse=True), "sparse=True"),
    (lambda: nn.Embedding(5, 4, max_norm=1.5), r"max_norm=1\.5"),
    (lambda: nn.LazyLinear(4), "has no shape yet"),
    (lambda: nn.LSTM(4, 4), "LSTM"),
    (_parametrized, "is parametrized already"),
    (lambda: _integer(), r"torch\.int8"),
]


class Thief:
    """What unpickling would run."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("stolen",)


def _pickled(bench: Bench) -> Path:
    torch.save({"state_dict": {}, "gpart": Thief()}, bench.folder / "thief.ckpt")
    return bench.folder / "thief.ckpt"


def _bomb(bench: Bench) -> Path:
    with zipfile.ZipFile(bench.folder / "other.ckpt", "w") as archive:
        archive.writestr("notes.txt", "no checkpoint")
    return bench.folder / "other.ckpt"


def _swap(rows: list[Any]) -> None:
    rows[0], rows[1] = rows[1], rows[0]


def _two(bench: Bench) -> Any:
    """An adapter of two weights, whose description has them in another order."""

    def model() -> nn.Module:
        torch.manual_seed(0)
        return nn.ModuleDict(
            {"a": nn.ModuleDict({"query": nn.Linear(4, 6)}), "b": nn.ModuleDict({"query": nn.Linear(4, 6)})}
        )

    attach(model(), GPartConfig(d=5, target_modules=["query"])).save(bench.folder / "two")
    described = json.loads((bench.folder / "two" / CONFIG).read_text())
    described.pop("sha256")
    _swap(described["weights"])
    bench.write(bench.folder / "two", described)
    bench.model = model()
    bench.state = bench.fixture("state_of")(bench.model)
    load_adapter(bench.model, bench.folder / "two")


FOLDERS: list[Row] = [
    ("no such folder", lambda b: load_adapter(b.model, b.folder / "none"), FileNotFoundError, "no adapter at .*none"),
    ("an empty folder", lambda b: load_adapter(b.model, b.folder), FileNotFoundError, f"no file {CONFIG}"),
    ("a file for a folder", lambda b: load_adapter(b.model, b.file("a", b"x")), FileNotFoundError, "it is a file"),
    ("a text for a config", lambda b: b.raw(CONFIG, b"d: 5"), ValueError, rf"{CONFIG} is no JSON"),
    ("an empty config", lambda b: b.raw(CONFIG, b""), ValueError, rf"{CONFIG} is no JSON"),
    ("a config nested too deep", lambda b: b.raw(CONFIG, b"[" * 100_000), ValueError, rf"{CONFIG} is no JSON"),
    ("a list for a config", lambda b: b.raw(CONFIG, b"[1]"), ValueError, "holds a list, not an object"),
    ("a number too long", lambda b: b.raw(CONFIG, b'{"d": ' + b"9" * 5000 + b"}"), ValueError, CONFIG),
    ("bytes for a config", lambda b: b.raw(CONFIG, bytes(range(256))), ValueError, CONFIG),
    ("no checksum", lambda b: b.raw(CONFIG, b'{"scheme": "gpart-v1"}'), ValueError, "written was None"),
    ("an empty tensor file", lambda b: b.raw(TENSORS, b""), ValueError, r"its 0 bytes have SHA-256 \w+, the config has \w+"),
    ("a pickle for tensors", lambda b: b.raw(TENSORS, b"\x80\x04."), ValueError, f"{TENSORS} was changed or truncated"),
    ("another scheme", lambda b: b.described(lambda m: m.update(scheme="gpart-v9")), ValueError, "'gpart-v9'.*'gpart-v1'"),
    ("another D", lambda b: b.described(lambda m: m.update(size=25)), ValueError, "D = 25, this model has D = 24"),
    ("another d", lambda b: b.described(lambda m: m["config"].update(d=6)), ValueError, r"shape \[5\].*needs \[6\]"),
    ("no d", lambda b: b.described(lambda m: m["config"].pop("d")), ValueError, r"missing \['d'\]"),
    ("an unknown setting", lambda b: b.described(lambda m: m["config"].update(rank=8)), ValueError, r"unknown \['rank'\]"),
    ("a d that is a text", lambda b: b.described(lambda m: m["config"].update(d="5")), ValueError, "got '5'"),
    ("a name that is no name", lambda b: b.described(lambda m: m.update(name="../x")), ValueError, r"'\.\./x'"),
    ("settings that are a list", lambda b: b.described(lambda m: m.update(config=[])), ValueError, r"'config': \[\]"),
    ("weights that are a number", lambda b: b.described(lambda m: m.update(weights=3)), ValueError, "no list of adapted weights: 3"),
    ("another weight", lambda b: b.described(lambda m: m.update(weights=[["body.key.weight", [6, 4]]])), ValueError,
     r"only there \[\['body\.key\.weight'.*only here \[\['body\.query\.weight'"),
    ("another shape", lambda b: b.described(lambda m: m.update(weights=[["body.query.weight", [4, 6]]])), ValueError,
     r"\[4, 6\].*\[6, 4\]"),
    ("another base", lambda b: b.described(lambda m: m.update(base="0" * 64)), ValueError,
     r"fingerprint 0{64}, this model has [0-9a-f]{64}"),
    ("no weights", lambda b: b.described(lambda m: m.pop("weights")), ValueError, "it needs .*'weights'.* and holds"),
    ("the weights in another order", _two, ValueError, r"number 0 is \['b\.query.*, here \['a\.query"),
    ("a theta too short", lambda b: b.tensors(lambda t: t.update(_theta(torch.ones(4)))), ValueError, r"\[4\].*\[5\]"),
    ("a theta of rows", lambda b: b.tensors(lambda t: t.update(_theta(torch.ones(5, 1)))), ValueError, r"\[5, 1\].*\[5\]"),
    ("a theta of whole numbers", lambda b: b.tensors(lambda t: t.update(_theta(torch.ones(5, dtype=torch.int64)))), ValueError,
     "torch.int64, not floating-point"),
    ("a theta with NaN", lambda b: b.tensors(lambda t: t.update(_theta(torch.full((5,), float("nan"))))), ValueError,
     "5 of the 5 numbers"),
    ("a theta too large for float32", lambda b: b.tensors(lambda t: t.update(_theta(torch.full((5,), 1e300, dtype=torch.float64)))),
     ValueError, "5 of the 5 numbers"),
    ("a complex head", lambda b: b.tensors(lambda t: t.update({"head.bias": torch.ones(2, dtype=torch.complex64)})), ValueError,
     r"head\.bias holds torch\.complex64, this model needs torch\.float32"),
    ("a head of whole numbers", lambda b: b.tensors(lambda t: t.update({"head.bias": torch.ones(2, dtype=torch.int32)})), ValueError,
     r"head\.bias holds torch\.int32, this model needs torch\.float32"),
    ("a name that torch has taken", lambda b: b.described(lambda m: m.update(name="keys")), ValueError, "'keys'"),
    ("no theta", lambda b: b.tensors(lambda t: t.pop("gpart.default.theta")), ValueError, r"missing \['gpart\.default\.theta'\]"),
    ("a tensor too many", lambda b: b.tensors(lambda t: t.update(spare=torch.ones(1))), ValueError, r"too many \['spare'\]"),
    ("a head of another shape", lambda b: b.tensors(lambda t: t.update({"head.bias": torch.ones(3)})), ValueError,
     r"head\.bias has shape \[3\].*needs \[2\]"),
    ("no head", lambda b: b.tensors(lambda t: t.pop("head.bias")), ValueError, r"missing \['head\.bias'\]"),
    ("a model that lacks the layer", lambda b: load_adapter(nn.ModuleDict({"head": nn.Linear(6, 2)}), b.saved()), ValueError,
     "'query' matches no module"),
    ("unknown indices", lambda b: load_adapter(b.model, b.saved(), indices="disk"), ValueError, "'disk'"),
    ("unknown weights", lambda b: load_adapter(b.model, b.saved(), weights="disk"), ValueError, "'disk'"),
]  # fmt: skip

CHECKPOINTS: list[Row] = [
    ("no checkpoint", lambda b: load_adapter(b.model, b.folder / "none.ckpt"), FileNotFoundError, r"no checkpoint at .*none\.ckpt"),
    ("a folder's name", lambda b: load_adapter(b.model, _folder(b, "a.ckpt")), FileNotFoundError, r"no checkpoint at .*a\.ckpt"),
    ("an empty file", lambda b: load_adapter(b.model, b.file("a.ckpt", b"")), ValueError, r"a\.ckpt cannot be read as a checkpoint"),
    ("a text", lambda b: load_adapter(b.model, b.file("a.ckpt", b"hello")), ValueError, r"a\.ckpt cannot be read as a checkpoint"),
    ("a zip of something else", lambda b: load_adapter(b.model, _bomb(b)), ValueError, r"other\.ckpt cannot be read"),
    ("code in a pickle", lambda b: load_adapter(b.model, _pickled(b)), ValueError, r"thief\.ckpt (cannot be read|holds)"),
    ("code, resumed from", lambda b: b.resume(_pickled(b)), ValueError, r"thief\.ckpt cannot be read"),
    ("code, loaded", lambda b: load_from_checkpoint(b.fixture("lit_class"), _pickled(b)), ValueError, r"thief\.ckpt (cannot|holds)"),
    ("a tensor for a dict", lambda b: load_adapter(b.model, _other(b, torch.ones(2))), ValueError, "holds a Tensor"),
    ("another tool's checkpoint", lambda b: load_adapter(b.model, _other(b, {"state_dict": {}})), ValueError,
     r"no GPart adapter; its keys are \['state_dict'\]"),
    ("the same, resumed from", lambda b: b.resume(_other(b, {"state_dict": {}, "pytorch-lightning_version": "2.6.0"})), ValueError,
     "written without GPartCheckpointIO"),
    ("cut short", lambda b: load_adapter(b.model, _cut(b)), ValueError, "cannot be read as a checkpoint"),
    ("cut short, resumed from", lambda b: b.resume(_cut(b)), ValueError, "cannot be read as a checkpoint"),
    ("another method's", lambda b: b.resume(b.checkpoint(LinearProbe(modules_to_save=["3"]))), ValueError,
     "is no adapter's|trained by|needs"),
    ("for another method", lambda b: b.resume(b.checkpoint(), LinearProbe(modules_to_save=["3"])), ValueError,
     "trained by GPart, this run uses LinearProbe"),
    ("another seed", lambda b: b.resume(b.checkpoint(), b.fixture("lit_gpart")(seed=7)), ValueError, "seed is 0 and 7"),
    ("another d", lambda b: b.resume(b.checkpoint(), b.fixture("lit_gpart")(d=11)), ValueError, "d is 10 and 11"),
    ("another submodule", lambda b: b.resume(b.edited(lambda c: c["gpart"].update(module="body"))), ValueError,
     "adapts submodule 'body', here it is 'net'"),
    ("one number of theta changed", lambda b: b.resume(b.edited(lambda c: c["state_dict"]["net.0.gpart.default.theta"].add_(1))),
     ValueError, r"its state has SHA-256 \w{64}, written was \w{64}"),
    ("no theta", lambda b: b.resume(b.edited(lambda c: c["state_dict"].pop("net.0.gpart.default.theta"))), ValueError,
     r"missing \['0\.gpart\.default\.theta'\]"),
    ("a state that is a list", lambda b: b.resume(b.edited(lambda c: c.update(state_dict=[1]))), ValueError, "holds no state_dict"),
    ("no manifest", lambda b: b.resume(b.edited(lambda c: c["gpart"].update(manifest=None))), ValueError, "is no adapter's"),
    ("a number for theta", lambda b: b.resume(b.edited(lambda c: c["state_dict"].update({"net.0.gpart.default.theta": 3}))), ValueError,
     "theta holds a int, here it is a tensor"),
    ("a number for a name", lambda b: b.resume(b.edited(lambda c: c["state_dict"].update({3: torch.ones(1)}))), ValueError,
     r"has the keys \[3\]"),
    ("no such file, resumed from", lambda b: b.resume(b.folder / "none.ckpt"), FileNotFoundError, r"none\.ckpt"),
    ("no such file, loaded", lambda b: load_from_checkpoint(b.fixture("lit_class"), b.folder / "none.ckpt"), FileNotFoundError,
     r"no checkpoint at .*none\.ckpt"),
]  # fmt: skip

CALLBACKS: list[Row] = [
    ("neither settings nor adapter", lambda b: GPartCallback(), ValueError, "got d=None, target_modules=None, adapter=None"),
    ("half of the settings", lambda b: GPartCallback(d=5), ValueError, "got d=5, target_modules=None"),
    ("a submodule that is not there", lambda b: b.fit(module="body"), ValueError, r"module='body' is no submodule .*\['net'\]"),
    ("a layer that is not there", lambda b: b.fit(target_modules=["9"]), ValueError, "'9' matches no module"),
    ("a d too large", lambda b: b.fit(d=129), ValueError, r"d=129 is more than the 128 weights"),
    ("an adapter that is not there", lambda b: b.fit(d=None, target_modules=None, adapter=str(b.folder / "none")), FileNotFoundError,
     "no adapter at .*none"),
    ("an adapter of another model", lambda b: b.fit(d=None, target_modules=None, adapter=str(b.saved())), ValueError,
     "'head' matches no module"),
    ("unknown memory settings", lambda b: b.fit(weights="often"), ValueError, "'often'"),
    ("PEFT settings that PEFT refuses", lambda b: PeftCallback("LORA", ["0"], settings={"rank": 8}), ValueError, "rank"),
    ("a method that PEFT does not know", lambda b: PeftCallback("LORAX", ["0"]), ValueError, "'LORAX'"),
]  # fmt: skip

DATA: list[Row] = [
    ("no such GLUE task", lambda b: GLUEDataModule("xyz"), ValueError, "'xyz' is none of GLUE's: cola"),
    ("GLUE that is not there", lambda b: b.glue(path=str(b.folder / "none")), FileNotFoundError, "no GLUE task 'rte' at .*none"),
    ("GLUE's model that is not there", lambda b: b.glue(model=str(b.folder)), ValueError, "can't be loaded"),
    ("more GLUE rows than there are", lambda b: b.glue(train_size=10_000), ValueError, "from 1 to the 72 rows .*got 10000"),
    ("nothing held out", lambda b: b.glue(held_out=0.0), ValueError, r"got 0\.0"),
    ("everything held out", lambda b: b.glue(held_out=1.5), ValueError, r"got 1\.5"),
    ("no such split", lambda b: b.glue(stage="test", score_split="dev"), ValueError, r"no split 'dev' of rte; it has \["),
    ("batches of no rows", lambda b: b.glue(batch_size=0).train_dataloader(), ValueError, "batch_size"),
    ("less than no workers", lambda b: b.glue(num_workers=-1).train_dataloader(), ValueError, "num_workers"),
    ("no such picture set", lambda b: ImageDataModule("mnist", "x"), ValueError, "'mnist' is none of"),
    ("pictures without a path", lambda b: ImageDataModule("imagefolder", "x"), ValueError, "got path=None"),
    ("a path where none belongs", lambda b: ImageDataModule("cifar10", "x", path="here"), ValueError, "got path='here'"),
    ("a folder without pictures", lambda b: b.images(), ValueError, "holds 0 folders of classes"),
    ("an empty class", lambda b: _classes(b, cat=b"", dog=None), ValueError, "class folder .*dog holds 0 pictures"),
    ("a crop of more than all", lambda b: b.images(crop_scale=(0.5, 2.0)), ValueError, r"got \(0\.5, 2\.0\)"),
    ("a flip more than certain", lambda b: b.images(hflip=1.5), ValueError, r"got 1\.5"),
    ("pictures of no pixels", lambda b: b.images(image_size=0), ValueError, "got 0"),
    ("no such questions", lambda b: b.math(benchmarks=["aime"]), ValueError, r"'gsm8k', 'math'.*\], got \['aime'\]"),
    ("a prompt without the question", lambda b: b.math(prompt="Answer:"), ValueError, "{question} in it, got 'Answer:'"),
    ("mathematics that is not there", lambda b: b.math(train=str(b.folder / "none.jsonl")), FileNotFoundError, r"none\.jsonl"),
    ("lines that are no JSON", lambda b: b.math(train=str(b.file("a.jsonl", b"{not json"))), ValueError, r"a\.jsonl' can't be read"),
    ("columns of other names", lambda b: b.math(train=str(b.file("a.jsonl", b'{"q": "1", "a": "2"}\n'))), ValueError,
     r"has the columns \['q', 'a'\]; expected"),
    ("answers that are numbers", lambda b: b.math(train=str(b.file("a.jsonl", b'{"query": "1", "response": 2}\n'))), ValueError,
     "the column 'response' holds int64, expected strings"),
    ("a file without rows", lambda b: b.math(train=str(b.file("a.jsonl", b""))), ValueError, "can't be read: it is empty"),
    ("reviews that are not there", lambda b: b.reviews(path=str(b.folder / "none.txt")), FileNotFoundError, r"at .*none\.txt"),
    ("a review without a score", lambda b: b.reviews(["1\t2\tgood", "2\tgood"]), ValueError, "line 2: expected id, score, text"),
    ("a score that is infinite", lambda b: b.reviews(["1\tinf\tgood"]), ValueError, "line 1: expected a finite score"),
    ("reviews of no opinion", lambda b: b.reviews(["1\t0\tfine"]), ValueError, "holds 0 sentences"),
    ("no sentences to ask about", lambda b: b.reviews(sentences=[]), ValueError, r"at least one text, got \[\]"),
]  # fmt: skip


def _theta(value: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"gpart.default.theta": value}


def _folder(bench: Bench, name: str) -> Path:
    (bench.folder / name).mkdir()
    return bench.folder / name


def _other(bench: Bench, content: Any) -> Path:
    torch.save(content, bench.folder / "other.ckpt")
    return bench.folder / "other.ckpt"


def _cut(bench: Bench) -> Path:
    path = bench.checkpoint()
    path.write_bytes(path.read_bytes()[:-100])
    return path


def _classes(bench: Bench, **classes: bytes | None) -> Any:
    """Class folders, the empty ones without a picture."""
    for split in ("train", "test"):
        for name, picture in classes.items():
            (bench.folder / split / name).mkdir(parents=True)
            if picture is not None:
                (bench.folder / split / name / "1.png").write_bytes(picture)
    return bench.images()


def _integer() -> nn.Module:
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)
    return layer


def _settings(change: dict[str, Any]) -> Callable[[Bench], Any]:
    return lambda bench: bench.attach(**change)


def _layer(build: Callable[[], nn.Module]) -> Callable[[Bench], Any]:
    def do(bench: Bench) -> Any:
        bench.model = nn.ModuleDict({"a": build(), "b": nn.Linear(2, 2)})
        bench.state = bench.fixture("state_of")(bench.model)
        attach(bench.model, GPartConfig(d=2, target_modules=["a"]))

    return do


TABLE: list[Row] = [
    *[(f"settings {str(change)[:60]}", _settings(change), ValueError, said) for change, said in [*CONFIGS, *FITS]],
    *[(f"a layer, {said}", _layer(build), ValueError, said) for build, said in LAYERS],
    *[(f"folder: {name}", *rest) for name, *rest in FOLDERS],
    *[(f"checkpoint: {name}", *rest) for name, *rest in CHECKPOINTS],
    *[(f"callback: {name}", *rest) for name, *rest in CALLBACKS],
    *[(f"data: {name}", *rest) for name, *rest in DATA],
]  # fmt: skip


@pytest.mark.parametrize(("do", "error", "said"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_one_clear_error_and_the_model_as_it_was(
    do: Callable[[Bench], Any], error: type[Exception], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest, state_of: Any,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    bench = Bench(tmp_path, net(), request.getfixturevalue)
    bench.state = state_of(bench.model)
    with pytest.raises(error, match=said) as raised:
        do(bench)
    # The documented type: a class of our own for it is welcome, torch's and Python's own are not meant.
    assert type(raised.value) is error or type(raised.value).__module__.startswith("gpart"), type(raised.value)
    assert not (tmp_path / "stolen").exists()
    # What a callback had put on before the file was refused comes off again without a trace: nothing was loaded.
    assert bench.trained or not get_adapters(bench.model)
    for adapter in get_adapters(bench.model).values():
        assert not adapter.theta.any()
        adapter.detach()
    bench.undo()
    bench.state.assert_kept()


def test_the_table_is_as_long_as_it_should_be() -> None:
    assert len({row[0] for row in TABLE}) == len(TABLE) >= 60
