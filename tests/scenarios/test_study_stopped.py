"""Two methods compared by a study that is stopped midway: the same command goes on, and no cell writes into another's folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from transformers import BertConfig, BertModel, BertTokenizer

ROOT = Path(__file__).parents[2]
WORDS = ["film", "good", "bad", "joy", "mess", "fine", "dull", "bright", "slow", "story"]
SEEDS = 2
CODE = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); from gpart.cli import main; sys.exit(main(sys.argv[1:]))"
"""The command, with the signal that tests in the background have ignored."""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a tiny model, 200 sentences, and a study of two lengths of theta by the quick start's recipe."""
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", *WORDS]) + "\n")
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "model")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    encoder = BertModel(BertConfig(vocab_size=len(WORDS) + 6, max_position_embeddings=32, **sizes))
    encoder.save_pretrained(tmp_path / "model")
    lines = [f"{i}\t{2.5 if i % 2 else -1.5}\tthe {WORDS[i % 10]} is number {i}" for i in range(200)]
    (tmp_path / "data.tsv").write_text("\n".join(lines) + "\n")
    settings = {"model.model": "model", "data.model": "model", "data.path": "data.tsv", "data.train_size": 64}
    content = {
        "folder": "out",
        "every": {"config": "quickstart", "set": {**settings, "trainer.max_epochs": 1, "trainer.accelerator": "cpu"}},
        "axes": {
            "task": {"movies": {"metric": "accuracy"}},
            "method": {
                "partition": {"set": {"method.d": 50}},
                "hash": {
                    "config": "methods/gpart-hash",
                    "set": {"method.d": 50, "method.save_folder": "adapters/hash"},
                },
            },
        },
        "columns": "task",
        "seeds": list(range(SEEDS)),
    }
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return tmp_path


@pytest.mark.slow
def test_a_study_of_two_methods_stopped_midway_is_finished_by_the_same_command(project: Path) -> None:
    command = [sys.executable, "-c", CODE, "study", "two.yaml"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    first = subprocess.Popen(command, cwd=project, env=environment, text=True, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 300
    # Midway: the second run is at work.
    while not (project / "out/movies/partition/seed-1/log.txt").exists():
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first.send_signal(signal.SIGINT)
    said, _ = first.communicate(timeout=120)
    assert first.returncode == 130
    assert "the same command goes on from here" in said
    kept = project / "out/movies/partition/seed-0/metrics.json"
    before = kept.read_bytes()
    assert not (project / "out/movies/hash").exists()

    second = subprocess.run(command, cwd=project, env=environment, text=True, capture_output=True, timeout=300)
    assert second.returncode == 0, second.stdout
    assert kept.read_bytes() == before
    table = json.loads((project / "out/table.json").read_text())
    assert [row["label"] for row in table["rows"]] == ["partition", "hash"]
    assert [run["state"] for run in table["runs"]] == ["finished"] * 2 * SEEDS
    adapters = sorted(file.parent.relative_to(project) for file in project.rglob("adapter_model.safetensors"))
    assert [path.parts[:4] for path in adapters] == [
        ("out", "movies", method, f"seed-{seed}") for method in ("hash", "partition") for seed in range(SEEDS)
    ]
    assert len({(project / path / "adapter_model.safetensors").read_bytes() for path in adapters}) == 2 * SEEDS
