"""Files of every projection, written by the version that brought them (``projection_files.py``), for ever."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from projection_files import digest, main, network

from gpart import load_adapter
from gpart.config import PROJECTIONS
from gpart.projections.registry import SCHEMES

FILES = Path(__file__).parents[1] / "files" / "projections"


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_a_file_comes_to_the_same_bits(projection: str) -> None:
    adapter = load_adapter(network(), FILES / projection)
    assert adapter.config.projection == projection
    assert adapter.manifest().scheme == SCHEMES[projection]
    assert digest(adapter) == json.loads((FILES / "merged.json").read_text())[projection]


def test_the_same_tensors_are_written_today(tmp_path: Path) -> None:
    main(tmp_path)
    for projection in PROJECTIONS:
        one, other = (folder / projection / "adapter_model.safetensors" for folder in (FILES, tmp_path))
        assert one.read_bytes() == other.read_bytes()
    assert (tmp_path / "merged.json").read_text() == (FILES / "merged.json").read_text()
