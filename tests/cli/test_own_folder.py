"""``--own_folder``: what a run writes, whatever its recipe calls it, is below the run's own folder."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from gpart.cli import main
from gpart.cli.own_folder import below, into_own_folder
from gpart.errors import GPartError


def settings(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    with pytest.raises(SystemExit):
        main(["fit", "--config=quickstart", *words, "--print_config"])
    return yaml.safe_load(capsys.readouterr().out)


def moved(given: dict[str, Any]) -> dict[str, Any]:
    into_own_folder(given)
    return given


def part(kind: str, **settings: object) -> dict[str, Any]:
    return {"class_path": f"some.where.{kind}", "init_args": settings}


def test_every_output_goes_below_the_runs_folder_and_inputs_stay() -> None:
    found = moved(
        {
            "trainer": {
                "default_root_dir": "runs/a",
                "callbacks": [
                    part("PredictionWriter", path="out/p.jsonl"),
                    part("PredictionWriter", path=None),
                    part("MetricsWriter", path="m.json"),
                    part("MetricsWriter", path="runs/a/metrics.json"),
                    part("ModelCheckpoint", dirpath="/big/disk"),
                    part("Mine", path="data/words.txt", save_folder="x"),
                ],
                "logger": part("TensorBoardLogger", save_dir="logs"),
            },
            "method": part("GPartCallback", save_folder="adapters/q", adapter="adapters/start"),
            "output": "p.csv",
        }
    )
    callbacks = [each["init_args"] for each in found["trainer"]["callbacks"]]
    assert [each.get("path") for each in callbacks] == [
        "runs/a/out/p.jsonl",
        None,
        "runs/a/m.json",
        "runs/a/metrics.json",  # as gpart study names it
        None,
        "data/words.txt",
    ]
    assert callbacks[4]["dirpath"] == "runs/a/big/disk"
    assert callbacks[5]["save_folder"] == "runs/a/x"
    assert found["output"] == "runs/a/p.csv"
    assert found["trainer"]["logger"]["init_args"]["save_dir"] == "runs/a/logs"
    assert found["method"]["init_args"] == {"save_folder": "runs/a/adapters/q", "adapter": "adapters/start"}


def test_a_run_with_nothing_to_move_and_a_list_of_loggers() -> None:
    moved({"trainer": {"default_root_dir": "a", "callbacks": None, "logger": True}, "method": None})
    loggers = moved({"trainer": {"default_root_dir": "a", "logger": [part("CSVLogger", save_dir="b")]}})
    assert loggers["trainer"]["logger"][0]["init_args"]["save_dir"] == "a/b"


def test_without_a_folder_it_is_refused() -> None:
    with pytest.raises(GPartError, match="give --trainer"):
        moved({"trainer": {"default_root_dir": None}})


def test_places_that_climb_or_lie_elsewhere() -> None:
    assert below("runs/a", "../../x") == "runs/a/x"
    assert below("/runs/a/", "/runs/a/x") == "/runs/a/x"
    assert below("s3://b/runs", "x") == "s3://b/runs/x"
    assert below("runs/a", "memory://x") == "memory://x/runs/a"


def test_the_command_takes_the_word(capsys: pytest.CaptureFixture[str]) -> None:
    assert settings(capsys)["method"]["init_args"]["save_folder"] == "adapters/quickstart"
    assert settings(capsys, "--own_folder=true")["own_folder"] is True
