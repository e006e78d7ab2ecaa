"""Damages adapter folders and checkpoints at random and loads them: none may load wrongly, none may crash.

    python benchmarks/faults/corruptions.py --out benchmarks/faults --cases 1000 --seed 0

A small BERT is trained for some steps by a real Trainer with GPartCallback, which leaves an adapter folder and a ``.ckpt``.
Each case takes one of the two, damages one file (one flipped bit, one to eight changed bytes, a cut, bytes put in or
taken out, a stretch of zeros, two files in each other's place), and loads it into a fresh copy of the base model: the
folder by ``gpart.load_adapter``, the checkpoint by that and by the reader of ``Trainer.fit(ckpt_path=...)``. Cases run in
a process of their own that the parent watches, so that a crash is an outcome and not the end.

Outcomes: ``refused`` (ValueError or FileNotFoundError, and the model's bits are as before) and ``same`` (all that was loaded
is, bit for bit, what was written: the damage hit bytes that mean nothing) are right. ``wrong``, ``another error``, ``model
changed`` and ``crash`` are faults; exit status 1 if there is one.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification

from gpart import get_adapters, load_adapter
from gpart.callbacks import GPartCallback, GPartCheckpointIO
from gpart.callbacks.checkpoints.contents import AdapterContents
from gpart.serialization.folder import CONFIG, TENSORS
from gpart.version import __version__

KINDS = ("bit", "bytes", "cut", "insert", "delete", "zeros", "swap")
RIGHT = ("refused", "same")


class Module(LightningModule):
    """A classifier of random words."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        self.model = BertForSequenceClassification(BertConfig(vocab_size=100, **sizes)).train()

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        """Whether the first word is of the larger half."""
        loss: torch.Tensor = self.model(batch, labels=(batch[:, 0] >= 50).long()).loss
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW, so that the checkpoint holds its moments."""
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def callback(folder: Path | None = None) -> GPartCallback:
    """The method."""
    return GPartCallback(d=200, target_modules=["query", "value"], modules_to_save=["classifier"],
                         save_folder=None if folder is None else str(folder))  # fmt: skip


def train(work: Path) -> None:
    """Leaves ``adapter/`` and ``run.ckpt``."""
    trainer = Trainer(max_steps=10, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[callback(work / "adapter")],
                      enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(Module(), DataLoader(torch.randint(0, 100, (64, 8)), batch_size=8))
    trainer.save_checkpoint(work / "run.ckpt")


def damage(folder: Path, seed: int) -> dict[str, Any]:
    """Damages one file of the folder; the same seed does the same."""
    draw = random.Random(seed)  # noqa: S311  # no secret
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path, kind = draw.choice(files), draw.choice(KINDS)
    if kind == "swap" and len(files) < 2:
        kind = "zeros"
    content = bytearray(path.read_bytes())
    at, count = draw.randrange(len(content)), draw.randint(1, 8)
    if kind == "bit":
        content[at] ^= 1 << draw.randrange(8)
    elif kind == "bytes":
        for place in [at, *(draw.randrange(len(content)) for _ in range(count - 1))]:
            content[place] = (content[place] + draw.randint(1, 255)) % 256
    elif kind == "cut":
        del content[at:]
    elif kind == "insert":
        content[at:at] = draw.randbytes(count)
    elif kind == "delete":
        del content[at : at + count]
    elif kind == "zeros":
        content[at : at + 64] = bytes(len(content[at : at + 64]))
    else:
        other = next(item for item in files if item != path)
        path_content = other.read_bytes()
        other.write_bytes(content)
        content = bytearray(path_content)
    path.write_bytes(content)
    return {"kind": kind, "file": path.name, "at": at}


def same(one: Any, other: Any) -> bool:
    """Whether two loaded things are equal, tensors by their bits."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and set(one) == set(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def by_adapter(path: Path, model: torch.nn.Module) -> Any:
    """What ``load_adapter`` gives: theta, the saved modules, the settings."""
    adapter = load_adapter(model, path)
    return {"theta": adapter.theta.detach(), "config": adapter.config.to_dict(), "state": dict(model.state_dict())}


def by_trainer(path: Path, module: Module) -> Any:
    """What a Trainer that resumes from the file gets."""
    plugin, method = GPartCheckpointIO(), callback()
    part = method.apply(module.model)
    if not isinstance(part, AdapterContents):
        raise TypeError(type(part))
    plugin.connect(module, "model", part)
    return plugin.load_checkpoint(path)


READERS = {"adapter": [by_adapter], "run.ckpt": [by_adapter, by_trainer]}


def case(work: Path, what: str, seed: int) -> dict[str, Any]:
    """Damages a copy and loads it by each of its readers."""
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        if what == "adapter":
            shutil.copytree(work / what, copy / what)
        else:
            shutil.copy(work / what, copy / what)
        row: dict[str, Any] = {"what": what, "seed": seed, **damage(copy, seed)}
        for reader in READERS[what]:
            module = Module()
            subject: Any = module if reader is by_trainer else module.model
            before = {key: value.clone() for key, value in Module().model.state_dict().items()}
            try:
                loaded = reader(copy / what, subject)
            except (ValueError, FileNotFoundError) as error:
                state = module.model.state_dict()
                kept = (reader is by_trainer or not get_adapters(module.model)) and all(
                    torch.equal(
                        value, state.get(key, state.get(key.replace(".weight", ".parametrizations.weight.original")))
                    )
                    for key, value in before.items()
                )
                outcome, said = ("refused" if kept else "model changed"), f"{type(error).__name__}: {error}"
            except Exception as error:  # noqa: BLE001  # which it is, is the outcome
                outcome, said = "another error", f"{type(error).__name__}: {error}"
            else:
                whole = Module()
                expected = reader(work / what, whole if reader is by_trainer else whole.model)
                outcome, said = ("same" if same(loaded, expected) else "wrong"), ""
            row[reader.__name__] = outcome
            if said:
                row["said"] = " ".join(said.replace(str(copy), "").split())[:100]
    return row


def worker(work: Path) -> None:
    """Answers one line for each line asked."""
    for line in sys.stdin:
        what, seed = line.split()
        print(json.dumps(case(work, what, int(seed))), flush=True)


def run_all(work: Path, cases: list[tuple[str, int]]) -> list[dict[str, Any]]:
    """All cases, in a process that is started again where it dies."""
    rows: list[dict[str, Any]] = []
    process: subprocess.Popen[str] | None = None
    for what, seed in cases:
        if process is None:
            words = [sys.executable, __file__, "--work", str(work)]
            process = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        if process.stdin is None or process.stdout is None:
            raise OSError("the worker has no pipes")
        process.stdin.write(f"{what} {seed}\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        if not answer:
            rows.append({"what": what, "seed": seed, "by_adapter": "crash", "said": f"exit status {process.wait()}"})
            process = None
            continue
        rows.append(json.loads(answer))
    if process is not None and process.stdin is not None:
        process.stdin.close()
        process.wait()
    return rows


def main() -> int:
    """Runs everything and writes ``corruptions.jsonl`` and ``corruptions.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--cases", type=int, default=1000, help="of the folder, and as many of the checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)  # a worker's
    given = parser.parse_args()
    if given.work is not None:
        worker(given.work)
        return 0
    with tempfile.TemporaryDirectory() as name:
        train(Path(name))
        rows = run_all(Path(name), [(what, given.seed + at) for what in READERS for at in range(given.cases)])
        sizes = {path.name: path.stat().st_size for path in Path(name).rglob("*") if path.is_file()}
    counts = {
        f"{what}, {reader.__name__}": dict(
            Counter(row.get(reader.__name__, "crash") for row in rows if row["what"] == what)
        )
        for what, readers in READERS.items()
        for reader in readers
    }
    unharmed = Counter((row["file"], row["kind"]) for row in rows if "same" in row.values())
    summary = {
        "date": datetime.now(tz=UTC).date().isoformat(),
        "command": " ".join(["python", *sys.argv]),
        "versions": {"gpart": __version__, "torch": torch.__version__, "python": sys.version.split()[0]},
        "bytes": {name: sizes[name] for name in (CONFIG, TENSORS, "run.ckpt")},
        "outcomes": counts,
        "unharmed": {f"{file}, {kind}": count for (file, kind), count in sorted(unharmed.items())},
    }
    if given.out is not None:
        (given.out / "corruptions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (given.out / "corruptions.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps(summary, indent=1))
    return int(any(outcome not in RIGHT for found in counts.values() for outcome in found))


if __name__ == "__main__":
    sys.exit(main())
