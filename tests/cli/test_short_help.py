"""``gpart fit --help`` shows the settings that people set, and ``--help-all`` the rest."""

from __future__ import annotations

import re

import pytest

import gpart.callbacks
import gpart.datamodules
import gpart.lightning_modules
from gpart.cli import main
from gpart.cli.commands import TRAINING


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 0
    return capsys.readouterr().out


def settings(text: str) -> list[str]:
    """The words at the lines' beginnings, without what they take."""
    found = re.findall(r"^  (?:-\w(?: \w+)?, )?(--[\w.-]+)", text, re.MULTILINE)
    return [word.rstrip("+") for word in found]


@pytest.mark.parametrize("command", TRAINING)
def test_help_is_short_and_each_of_its_settings_is_one_of_the_commands(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for asked in ("-h", "--help"):
        short = shown(capsys, command, asked)
    everything = settings(shown(capsys, command, "--help-all"))
    assert len(everything) > 60
    few = settings(short)
    assert len(set(few)) == len(few) <= 55
    assert [word for word in few if word not in everything and not word.endswith(".SETTING")] == []
    assert max(map(len, short.splitlines())) <= 80
    assert len(short.splitlines()) < 130


def test_help_says_where_the_rest_is_and_names_the_classes(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(shown(capsys, "fit", "--help").split())
    assert "--help-all show all settings" in text
    assert "--help-all shows all settings. --method.help GPartCallback shows those of a class" in text
    for name in (
        *gpart.lightning_modules.__all__,
        *gpart.datamodules.__all__,
        "GPartCallback",
        "PeftCallback",
        "BitFit",
    ):
        assert name in text
    for word in ("--trainer.max_epochs", "--trainer.devices", "--resume", "--test_best", "--ckpt_path", "--optimizer"):
        assert f"{word} " in text
    assert "accumulate_grad_batches N batches per optimizer step (default: 1)" in text
    assert "--output" not in text
    assert "barebones" not in text


def test_a_command_that_does_not_train_shows_what_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    few = settings(shown(capsys, "predict", "--help"))
    assert {"--output", "--trainer.limit_predict_batches", "--method.help"} <= set(few)
    assert not {"--resume", "--test_best", "--trainer.max_epochs", "--optimizer"} & set(few)


def test_a_classs_own_help_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "fit", "--method.help", "GPartCallback")
    assert {"--method.d", "--method.target_modules"} <= set(settings(text))
    assert "--trainer" not in text
