"""A study's words, as the real command takes them, and the metrics.json that it writes for them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from transformers import BertConfig, BertModel, BertTokenizer

from gpart.cli import main
from gpart.cli.study import study_command
from gpart.studies.experiments.outcome import no_score, read_outcome
from gpart.studies.experiments.plan import plan
from gpart.studies.experiments.results import collect
from gpart.studies.experiments.schema import read_study

SENTENCES = ["film", "good", "bad", "joy", "mess", "fine", "dull", "bright", "slow", "story"]


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A study of the quick start's recipe on a tiny model, by two methods, in the current folder."""
    monkeypatch.chdir(tmp_path)
    Path("vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", *SENTENCES]) + "\n")
    BertTokenizer("vocab.txt").save_pretrained("model")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(SENTENCES) + 6, max_position_embeddings=32, **sizes)).save_pretrained("model")
    lines = [f"{i}\t{2.5 if i % 2 else -1.5}\tthe {SENTENCES[i % 10]} is number {i}" for i in range(200)]
    Path("data.tsv").write_text("\n".join(lines) + "\n")
    content = {
        "folder": "out",
        "every": {
            "config": "quickstart",
            "set": {
                "model.model": "model",
                "data.model": "model",
                "data.path": "data.tsv",
                "data.train_size": 64,
                "trainer.max_epochs": 1,
                "trainer.accelerator": "cpu",
            },
        },
        "axes": {
            "task": {"movies": {"metric": "accuracy"}},
            "method": {
                "GPart": {"set": {"method.d": 50, "method.target_modules": ["query", "value"]}},
                "probe": {"config": "methods/linear-probe", "tune": {"model.lr": [1.0e-3, 1.0e-2]}},
            },
        },
        "columns": "task",
    }
    Path("small.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return "small.yaml"


def test_the_command_takes_the_words_and_writes_what_the_table_needs(study: str) -> None:
    read = read_study(study)
    cells = plan(read)
    for run in (cells[0].candidates[0].runs[0], cells[1].candidates[1].runs[0]):
        assert main(run.words) == 0
        (run.folder / "command.json").write_text(json.dumps({"words": list(run.words)}))
        outcome = read_outcome(run)
        assert outcome.state == "finished"
        assert no_score(run, outcome) is None
        assert outcome.validation is not None
        assert list(run.folder.rglob("*.ckpt"))
        assert (run.folder / "adapters" / "quickstart").is_dir()
        config = yaml.safe_load(next(run.folder.rglob("config.yaml")).read_text())
        if run.tuned:
            assert config["model"]["init_args"]["lr"] == run.tuned["model.lr"]
    assert not Path("adapters").exists()  # where the recipe has it: the cells would share it
    row = collect(read, cells).rows[0]
    assert row.parameters == 50
    assert row.kept_bytes
    assert row.seconds is not None
    assert row.peak_bytes


@pytest.mark.slow
def test_a_study_from_its_file_to_its_table(study: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert study_command([study]) == 0, capsys.readouterr().out
    out = capsys.readouterr().out
    assert "Missing" not in out
    assert out.count("finished ") == 3
    assert study_command([study]) == 0
    assert capsys.readouterr().out.count("kept ") == 3
