"""A user's mistake is told in one line, a fault keeps its traceback: by the type of the error alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from torch.utils.data import DataLoader, Dataset

from gpart.cli import main
from gpart.cli.main import _meant_for_users
from gpart.cli.message import told
from gpart.cli.mistyped import mistyped
from gpart.errors import GPartError, GPartFileError


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException, BaseException | None], list[str]]:
    """Makes the words of a command that raises an error, from another."""

    def make(error: BaseException, cause: BaseException | None = None) -> list[str]:
        def fails(words: list[str]) -> NoReturn:
            raise error from cause

        monkeypatch.setattr("gpart.cli.configs.configs_command", fails)
        return ["configs"]

    monkeypatch.delenv("GPART_TRACEBACK", raising=False)
    return make


def test_an_error_for_users_is_one_line(failing: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    for error in (GPartError("d=5 is more than\n  the 4 weights"), GPartFileError("no adapter at run/adapter")):
        assert main(failing(error)) == 2
        said = capsys.readouterr()
        assert said.err == f"gpart: error: {' '.join(str(error).split())}\n"
        assert said.out == ""


def test_the_one_below_a_library_that_wraps_it_is_told(
    failing: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    wrapped = RuntimeError("while instantiating")
    wrapped.__cause__ = GPartError("d=0")
    assert main(failing(TypeError("in a list"), wrapped)) == 2
    assert capsys.readouterr().err == "gpart: error: d=0\n"


@pytest.mark.parametrize(
    "fault", [ValueError("zip() argument 2 is shorter than argument 1"), FileNotFoundError("x"), OSError("x")]
)
def test_any_other_error_keeps_its_traceback(failing: Callable[..., list[str]], fault: Exception) -> None:
    with pytest.raises(type(fault)) as caught:
        main(failing(fault))
    assert caught.value is fault


def test_an_error_that_was_only_being_handled_is_no_cause(failing: Callable[..., list[str]]) -> None:
    fault = ValueError("in the handling of another")
    fault.__context__ = GPartError("that other")
    with pytest.raises(ValueError, match="in the handling"):
        main(failing(fault))


def test_the_environment_keeps_every_traceback(
    failing: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = failing(GPartError("d=0"))
    monkeypatch.setenv("GPART_TRACEBACK", "1")
    with pytest.raises(GPartError, match="d=0"):
        main(words)
    with pytest.raises(GPartError, match="unrecognized"):
        main(["study", "s.yaml", "--nosuch"])


class Unreadable(Dataset[int]):
    def __init__(self, error: type[Exception]) -> None:
        self.error = error

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> NoReturn:
        raise self.error(f"picture {index}\ncannot be read") from OSError("below")


@pytest.mark.parametrize("kind", [GPartError, GPartFileError])
def test_a_workers_error_is_told_without_its_traceback(kind: type[Exception]) -> None:
    with pytest.raises(kind) as caught:
        list(DataLoader(Unreadable(kind), num_workers=1))
    assert _meant_for_users(caught.value) is caught.value
    assert told(caught.value) == "picture 0 cannot be read"


def test_a_workers_fault_is_a_fault() -> None:
    with pytest.raises(ValueError) as caught:
        list(DataLoader(Unreadable(ValueError), num_workers=1))
    assert _meant_for_users(caught.value) is None


def test_a_long_message_is_cut() -> None:
    assert told(ValueError("word " * 1000), most=20) == "word word word w ..."


@pytest.mark.parametrize("command", ["configs", "params", "study", "bench"])
def test_words_that_a_command_does_not_take(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "MODEL", "--nosuch"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"gpart: error: gpart {command}: ")
    assert "--nosuch" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("words", [["fit", "--config", "bad.yaml"], ["study", "bad.yaml"]])
def test_a_recipe_that_is_no_text(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.yaml").write_bytes(b"\xff\xfe\x00")
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith("gpart: error: the recipe bad.yaml cannot be read: ")
    assert said.count("\n") == 1


def test_a_copy_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("quickstart.yaml").symlink_to("no/such/folder")  # root may write anywhere else
    assert main(["configs", "--copy", "quickstart"]) == 2
    assert "quickstart.yaml cannot be written here" in capsys.readouterr().err


def test_fit_alone_says_what_to_give(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit"]) == 2
    assert "gpart fit --config quickstart" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "choices"),
    [
        ("params", ["{float32,bfloat16,float16}", "{stored,computed}", "{kept,forward,recomputed}", "causal-lm"]),
        ("bench", ["memory", "inject", "generate", "{32,bf16-mixed,bf16-true}", "causal-lm", "fourierft", "unilora"]),
    ],
)
def test_help_lists_the_choices(command: str, choices: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert all(choice in shown for choice in choices)


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(13, "Permission denied", "/data/runs"),
        OSError(28, "No space left on device", "/data/runs"),
        OSError(30, "Read-only file system", "/data/runs"),
        IsADirectoryError(21, "Is a directory", "/data/runs"),
        NotADirectoryError(20, "Not a directory", "/data/runs"),
    ],
)
def test_an_error_of_the_file_system_is_one_line(
    error: OSError, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(words: list[str]) -> int:
        raise error

    monkeypatch.setattr("gpart.cli.configs.configs_command", fails)
    assert main(["configs"]) == 2
    said = capsys.readouterr().err
    assert said == f"gpart: error: {error}\n"
    assert "/data/runs" in said


def test_another_error_of_a_file_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(words: list[str]) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("gpart.cli.configs.configs_command", fails)
    with pytest.raises(OSError, match="Input/output"):
        main(["configs"])


UNION = 'Parser key "x": Does not validate against any of the Union subtypes Subtypes: [a, b] Errors: -'
GIVEN = "Given value type: <class 'dict'> Given value: {}"
NO_M = "Option 'm' is not accepted"


@pytest.mark.parametrize(
    "message",
    [
        "the following arguments are required: --model",
        'Parser key "x": something else',
        # Of two classes, either may have been meant.
        f"{UNION} Problem with given class_path 'a.B': {NO_M} - Problem with given class_path 'a.C': {NO_M} {GIVEN}",
        f"{UNION} Expected a <class 'int'> - Not of a member {GIVEN}",
    ],
)
def test_a_text_of_jsonargparse_that_is_not_understood_is_left(message: str) -> None:
    assert mistyped(message) is None
