"""Writing a merged model as its own library's folder.

Invariant: nothing in the folder needs gpart, and nothing in it is code.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_model

from gpart.assets.fetching import gguf, resolve
from gpart.bases.models import WEIGHTS, Base, quiet
from gpart.errors import GPartError
from gpart.version import __version__

BESIDE = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *(
        "vocab.txt",
        "merges.txt",
        "tokenizer.model",
        "spiece.model",
        "sentencepiece.bpe.model",
        "spm.model",
        "bpe.codes",
    ),
    *("chat_template.jinja", "chat_template.json", "preprocessor_config.json", "processor_config.json"),
    *("video_preprocessor_config.json", "generation_config.json", "LICENSE*", "NOTICE*", "USE_POLICY*"),
)
"""What lies beside a model's weights and belongs to it: tokenizers, processors, licences. No Python files."""

WRITTEN = (
    *("README.md", "config.json", WEIGHTS, "model-*-of-*.safetensors", f"{WEIGHTS}.index.json"),
    *("generation_config.json", "additional_chat_templates/", "sentencepiece.model"),
    *BESIDE,
)
"""All names by which :func:`write_model` writes: its own note, Transformers' and timm's models, and what is beside one."""


def write_model(base: Base, folder: Path, adapter: str) -> None:
    """Writes a base's model, which now holds W0 + P·theta, into a folder that is there.

    Args:
        base: what was loaded; its model carries no adapter any more.
        folder: empty.
        adapter: where the update came from, for the note.

    Raises:
        GPartError: if its library cannot write it.
    """
    model: Any = base.model
    try:
        if base.kind == "transformers":
            with quiet():
                model.save_pretrained(folder)
            _copy_beside(base, folder)
        elif base.kind == "timm":
            import timm  # noqa: PLC0415  # as where it is loaded

            timm.models.save_for_hf(model, str(folder), safe_serialization=True)
            _copy_beside(base, folder)
        else:
            save_model(model, str(folder / WEIGHTS))
    except (RuntimeError, ValueError, OSError, NotImplementedError) as error:
        if isinstance(error, GPartError):
            raise
        raise GPartError(f"the merged model cannot be written: {error}") from error
    note = folder / "README.md"
    note.write_text(_note(base, adapter), encoding="utf-8")
    for path in folder.iterdir():
        if path.is_file():
            path.chmod(note.stat().st_mode)  # safetensors makes files that nobody else can read


def _copy_beside(base: Base, folder: Path) -> None:
    """Copies what lies beside the base's weights, but for what the library has written itself."""
    place = resolve(base.place)
    if base.kind == "transformers" and gguf(place)[1]:
        import transformers  # noqa: PLC0415

        source, file = gguf(place)
        with quiet():
            transformers.AutoTokenizer.from_pretrained(source, **file).save_pretrained(folder)
        place = source  # licences lie there
    if not Path(place).is_dir():
        name = re.sub(r"^hf-hub:", "", place)
        if base.kind == "timm" and name == place:
            return  # timm's own name: nothing lies beside it
        from huggingface_hub import snapshot_download  # noqa: PLC0415

        name, _, revision = name.partition("@")
        place = snapshot_download(name, revision=revision or None, allow_patterns=list(BESIDE))
    for pattern in BESIDE:
        for path in sorted(Path(place).glob(pattern)):
            if path.is_file() and not (folder / path.name).exists():
                shutil.copyfile(path, folder / path.name)


def _note(base: Base, adapter: str) -> str:
    kind = type(base.model).__name__
    load = {
        "transformers": f'from transformers import {kind}\n\nmodel = {kind}.from_pretrained("THIS_FOLDER")',
        "timm": 'import timm\n\nmodel = timm.create_model("local-dir:THIS_FOLDER", pretrained=True)',
        "python": f'from safetensors.torch import load_model\n\nmodel = ...  # as {base.place} builds it\nload_model(model, "THIS_FOLDER/{WEIGHTS}")',
    }[base.kind]
    return (
        f"# {kind}, merged\n\n`gpart merge` ({__version__}) wrote this from the base `{_shown(base.name)}` and the adapter"
        f" `{_shown(adapter)}`: W0 + P·theta, summed in float32 and rounded once, and the trained heads. It is a plain model"
        f" and needs no gpart:\n\n```python\n{load}\n```\n"
    )


def _shown(name: str) -> str:
    """A name that says nothing of the folders above it."""
    place = name.removeprefix("timm:")
    path = Path(place)
    return path.resolve().name if path.is_absolute() or path.exists() else name
