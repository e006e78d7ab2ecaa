"""A packaged model has an architecture, as one on the hub."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import BertConfig

from gpart.cli import main
from gpart.studies import architectures


def test_params_counts_a_packaged_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    BertConfig(hidden_size=384, architectures=["BertForMaskedLM"]).save_pretrained(tmp_path)
    monkeypatch.setattr("gpart.assets.fetching.fetch", lambda name: {"small": tmp_path}[name])
    assert architectures.config("packaged:small").hidden_size == 384
    assert main(["params", "packaged:small", "--memory", "--length=64"]) == 0
    assert "GPart's training memory" in capsys.readouterr().out
    assert main(["params", "packaged:small", "--memory"]) == 0  # as many as it has positions
    assert "length 512" in " ".join(capsys.readouterr().out.split())
    assert main(["params", "packaged:small", "--memory", "--length=2048"]) == 2
    assert "length=2048 is more than the 512 positions of packaged:small" in capsys.readouterr().err
