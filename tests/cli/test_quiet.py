"""Nothing stands above a command's own first line."""

from __future__ import annotations

import logging
import subprocess
import sys
import warnings

import pytest

from gpart.cli.quiet import LOGGED, silence_imports, silence_warnings


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        pytest.param(["fit", "--help"], 0, marks=pytest.mark.slow),
        (["fit", "--config", "quickstart", "--print_config"], 0),
        pytest.param(["fit", "--config", "nosuch"], 1, marks=pytest.mark.slow),
        pytest.param(["params", "--help"], 0, marks=pytest.mark.slow),
        pytest.param(["bench"], 1, marks=pytest.mark.slow),
        pytest.param(["study", "--help"], 0, marks=pytest.mark.slow),
        pytest.param(["configs", "--copy", "nosuch"], 1, marks=pytest.mark.slow),
    ],
)
def test_standard_error_has_the_commands_own_lines(words: list[str], lines: int) -> None:
    done = subprocess.run([sys.executable, "-m", "gpart.cli", *words], capture_output=True, text=True, check=False)
    said = done.stderr.splitlines()
    assert len(said) == lines, done.stderr
    assert all(line.startswith("gpart: error: ") for line in said)
    assert done.returncode == (2 if lines else 0)
    assert (done.stdout == "") == bool(lines)


def test_only_the_named_records_are_left_out() -> None:
    silence_imports()
    for name, words in LOGGED.items():
        logger = logging.getLogger(name)

        def passes(message: str, logger: logging.Logger = logger) -> bool:
            return bool(logger.filter(logger.makeRecord(logger.name, logging.WARNING, "", 1, message, (), None)))

        for each in words if name != "transformers.modeling_utils" else ():
            assert not passes(f"%s {each} by torch")
        assert passes("%s is already registered as pytree node")


def test_only_the_named_warnings_are_left_out() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        silence_warnings()
        warnings.warn("The 'train_dataloader' does not have many workers", stacklevel=1)
        warnings.warn("The 'train_dataloader' is empty", stacklevel=1)
    assert [str(each.message) for each in caught] == ["The 'train_dataloader' is empty"]


REPORT = """\x1b[1mNet LOAD REPORT\x1b[0m from: /some/where
Key               | Status  |
------------------+---------+-
{}

Notes:
- \x1b[31mMISSING:\x1b[0m\tthose params were newly initialized."""


@pytest.mark.parametrize(
    ("rows", "passes"),
    [
        (["classifier.bias | \x1b[31mMISSING\x1b[0m |", "bert.pooler.dense.weight | MISSING |"], False),
        (["classifier.bias | MISSING |", "lm_head.bias | UNEXPECTED |"], False),
        (["classifier.bias | MISSING |", "bert.encoder.layer.0.query.weight | MISSING |"], True),
        (["classifier.bias | MISMATCH | Reinit"], True),
        ([], True),
    ],
)
def test_a_report_on_weights_is_left_out_only_if_it_tells_of_a_head_alone(rows: list[str], passes: bool) -> None:
    silence_imports()
    logger = logging.getLogger("transformers.modeling_utils")
    record = logger.makeRecord(logger.name, logging.WARNING, "", 1, REPORT.format("\n".join(rows)), (), None)
    assert bool(logger.filter(record)) == passes
