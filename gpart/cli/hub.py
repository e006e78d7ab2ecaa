"""``gpart push`` and ``gpart pull``: an adapter folder as a repository on the hub.

Invariant: what is pushed was read with its checksums first, and so was what is pulled, before it is at OUT.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor

from gpart.bases.models import quiet
from gpart.cli.card import Told, card, last_part, parse_metric
from gpart.cli.folders import check_out, whole_folder
from gpart.cli.message import Parser
from gpart.errors import GPartError, GPartFileError
from gpart.injection.modules import theta_key
from gpart.loading import check_manifest_name
from gpart.materialize.merging import check_finite
from gpart.serialization.folder import CONFIG, TENSORS, adapter_place, read_folder, write_folder
from gpart.serialization.hub import README, download, has_file, split_name, upload
from gpart.serialization.locations import inside, is_file, read
from gpart.serialization.manifest import Manifest
from gpart.serialization.sources import checkpoint_of, read_adapter

PUSH = """Uploads an adapter to the hub with a model card, in one commit. The repository is made where it is missing. A
README.md in the adapter's folder is the card; else one is written, unless the repository has one already. The token is
huggingface_hub's: 'hf auth login', or HF_TOKEN."""

PULL = """Downloads an adapter from the hub to the folder OUT, and looks at its checksums before it is there. No download
is needed to use one: load_adapter(model, "user/name") and the other commands take its name."""


def push_command(words: list[str]) -> int:
    """Uploads an adapter.

    Raises:
        GPartError: if it is no adapter or was changed, a word is wrong, or the hub refuses.
    """
    asked = _push_parser().parse_args(words)
    name = f"{asked.name}@{asked.revision}" if asked.revision else asked.name
    repo, _ = split_name(name)
    told = Told(asked.base, dict(map(parse_metric, asked.metric)), asked.dataset, _recipe(asked.recipe))
    files, manifest, tensors, own_card = _files(asked.adapter, asked.base)
    if own_card is not None and told != Told() and not asked.overwrite_card:
        raise GPartError(
            f"{asked.adapter} has a README.md, which is pushed as it is: write base, metrics, data and recipe there, or give"
            " --overwrite-card to push a new card in its place"
        )
    if own_card is not None and not asked.overwrite_card:
        files[README], shown = own_card, "the folder's own README.md"
    elif asked.overwrite_card or not has_file(name, README):
        with quiet():
            files[README], shown = card(repo, manifest, tensors, told).encode(), "written"
    else:
        shown = "left as it is there: --overwrite-card replaces it"
    url = upload(name, files, asked.message or f"GPart adapter, d = {manifest.config.d}", asked.private or None)
    if asked.json:
        sizes = {file: len(content) for file, content in files.items()}
        print(
            json.dumps({"adapter": asked.adapter, "name": name, "files": sizes, "card": shown, "commit": url}, indent=2)
        )
        return 0
    print(f"pushed  {asked.adapter} to {name}: {', '.join(f'{file} ({len(files[file]):,} bytes)' for file in files)}")
    print(f"card    {shown}")
    print(f"commit  {url}")
    print(f'load    load_adapter(model, "{name}")')
    return 0


def pull_command(words: list[str]) -> int:
    """Downloads an adapter.

    Raises:
        GPartError: if there is none, it was changed, or OUT is there already; nothing is then at OUT.
    """
    asked = _pull_parser().parse_args(words)
    name = f"{asked.name}@{asked.revision}" if asked.revision else asked.name
    split_name(name)
    out = check_out(asked.out, asked.force, (CONFIG,), (CONFIG, TENSORS, README))
    with whole_folder(out) as folder:
        download(name, folder)
        manifest, tensors = read_folder(folder)
        _check(manifest, tensors, name)
        sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    if asked.json:
        about = {"d": manifest.config.d, "D": manifest.size, "adapter": manifest.name, "base": manifest.base}
        print(json.dumps({"name": name, "out": asked.out, "files": sizes, **about}, indent=2))
        return 0
    print(f"pulled  {name} to {asked.out}: {', '.join(f'{file} ({size:,} bytes)' for file, size in sizes.items())}")
    print(
        f"adapter d = {manifest.config.d:,}, D = {manifest.size:,}, {len(manifest.weights)} weights; the checksums are right"
    )
    print(f"load    load_adapter(model, {asked.out!r})")
    return 0


def _files(source: str, base: str | None) -> tuple[dict[str, bytes], Manifest, dict[str, Tensor], bytes | None]:
    """An adapter's two files as bytes that were checked, what they hold, and the card beside them."""
    own_card = None
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if checkpoint_of(source) is not None:
            write_folder(folder, *read_adapter(source))
        else:
            place = adapter_place(source)
            for file in (CONFIG, TENSORS):
                if not is_file(inside(place, file)):
                    raise GPartFileError(f"no adapter at {place}: there is no file {file}")
                (folder / file).write_bytes(read(inside(place, file)))
            if is_file(inside(place, README)):
                own_card = read(inside(place, README))
        manifest, tensors = read_folder(folder)
        _check(manifest, tensors, source)
        named = manifest.about.base if base is None else base
        public = None if named is None else last_part(named)  # where a folder lies is nobody else's affair
        if public != manifest.about.base:
            manifest = replace(manifest, about=replace(manifest.about, base=public))
            write_folder(folder, manifest, tensors)
        return {file: (folder / file).read_bytes() for file in (CONFIG, TENSORS)}, manifest, tensors, own_card


def _check(manifest: Manifest, tensors: dict[str, Tensor], source: str) -> None:
    """Looks at what can be looked at without a model.

    Raises:
        GPartError: if the adapter has a name that cannot be one, no theta of length d, or numbers that are
            not finite.
    """
    theta = tensors.get(theta_key(check_manifest_name(manifest, source)))
    if theta is None or tuple(theta.shape) != (manifest.config.d,):
        found = "none" if theta is None else f"one of shape {list(theta.shape)}"
        raise GPartError(f"{source} must hold a theta of {manifest.config.d} numbers, it has {found}")
    check_finite({**tensors, "theta": theta}, source)


def _recipe(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise GPartFileError(f"--recipe {path}: there is no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise GPartError(f"--recipe {path} cannot be read: {error}") from error


def _push_parser() -> Parser:
    parser = Parser(prog="gpart push", description=PUSH)
    parser.add_argument(
        "adapter",
        metavar="ADAPTER",
        help="an adapter: a folder, or a checkpoint (FILE.ckpt, or FILE.ckpt:NAME of several)",
    )
    parser.add_argument("name", metavar="USER/NAME", help="the repository")
    parser.add_argument(
        "--private", action="store_true", help="make the repository private; default: your account's setting"
    )
    parser.add_argument("--message", metavar="TEXT", help="the commit message")
    parser.add_argument(
        "--revision", metavar="BRANCH", help="the branch, which is created if it does not exist; default: main"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    group = parser.add_argument_group("the card")
    group.add_argument("--base", metavar="BASE", help="the base model: its name on the hub, or its folder")
    group.add_argument(
        "--metric",
        metavar="NAME=NUMBER",
        action="append",
        default=[],
        help="a score, such as accuracy=0.91; may be given several times",
    )
    group.add_argument("--dataset", metavar="NAME", action="append", default=[], help="may be given several times")
    group.add_argument(
        "--recipe", metavar="FILE", help="include this recipe, which all who see the repository can read"
    )
    group.add_argument(
        "--overwrite-card", action="store_true", help="write a new card, even if the folder or the repository has one"
    )
    return parser


def _pull_parser() -> Parser:
    parser = Parser(prog="gpart pull", description=PULL)
    parser.add_argument("name", metavar="USER/NAME", help="the repository, or USER/NAME@REVISION")
    parser.add_argument("out", metavar="OUT", help="the folder to write")
    parser.add_argument("--revision", metavar="REVISION", help="a branch, a tag or a commit; default: main")
    parser.add_argument("--force", action="store_true", help="replace the adapter that is at OUT")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser
