"""``gpart push`` and ``gpart pull`` against a server on this machine that speaks the hub's paths."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hub_stub
import pytest
import torch
import yaml
from command_words import as_json, refused
from safetensors.torch import save
from small_adapter import adapted, base
from tiny_bases import bert_folder, classifier, leftovers, trained

from gpart import GPartConfig, attach, load_adapter
from gpart.cli import main
from gpart.cli.card import Told, card, parse_metric
from gpart.errors import GPartError
from gpart.serialization.folder import CONFIG, TENSORS, read_folder
from gpart.serialization.hub import LIMITS, README

NAME = "me/film"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[hub_stub.Hub]:
    """The hub, and an adapter in the folder ``adapter``."""
    adapted().save(tmp_path / "adapter")
    with hub_stub.connected(tmp_path, monkeypatch) as found:
        yield found


def content(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def matter_of(text: str) -> dict[str, Any]:
    """A card's front matter."""
    read: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    return read


def test_there_and_back_bit_for_bit(hub: hub_stub.Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", "adapter", NAME, "--message", "trained", "--private"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert f"commit  {hub.url}/me/film/commit/{hub.branches[NAME]['main']}" in said.out
    assert 'load_adapter(model, "me/film")' in said.out
    assert hub.messages == ["trained"]
    assert hub.private == {NAME}
    assert main(["pull", NAME, "back"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "d = 5, D = 32, 1 weights; the checksums are right" in said.out
    back = content("back")
    assert back.pop(README) == hub.files(NAME)[README]
    assert back == content("adapter")
    assert torch.equal(load_adapter(base(), "back").theta, load_adapter(base(), NAME).theta)
    assert not leftovers(tmp_path)


def test_as_json(hub: hub_stub.Hub, capsys: pytest.CaptureFixture[str]) -> None:
    said = as_json(capsys, "push", "adapter", NAME)
    sizes = {name: len(text) for name, text in content("adapter").items()}
    assert {name: said["files"][name] for name in sizes} == sizes
    assert (said["name"], said["card"]) == (NAME, "written")
    said = as_json(capsys, "pull", NAME, "back")
    assert (said["d"], said["D"], said["adapter"], len(said["base"])) == (5, 32, "default", 64)
    assert {name: said["files"][name] for name in sizes} == sizes


def test_a_card_says_what_the_file_and_the_user_say(
    hub: hub_stub.Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(classifier(bert_folder(tmp_path / "bert")), tmp_path / "adapter", modules_to_save=["classifier"], seed=7)
    Path("recipe.yaml").write_text("model: x\n# ``` a fence\n")
    told = [
        "--metric",
        "accuracy=0.91",
        "--metric",
        "val/f1 = 0.5",
        "--dataset",
        "nyu-mll/glue",
        "--recipe",
        "recipe.yaml",
    ]
    as_json(capsys, "push", "adapter", f"{NAME}", "--base", "bert", *told)
    text = hub.files(NAME)[README].decode()
    matter = matter_of(text)
    assert (matter["library_name"], matter["datasets"], matter["metrics"]) == (
        "gpart",
        ["nyu-mll/glue"],
        ["accuracy", "val/f1"],
    )
    assert "base_model" not in matter  # a folder is nobody else's
    assert str(tmp_path) not in text
    pushed = hub.files(NAME)["adapter_config.json"].decode()
    assert str(tmp_path) not in pushed
    assert json.loads(pushed)["about"]["base"] == "bert"
    for line in (
        "| d | `30` |",
        "| D | `1,024` |",
        "| seed | `7` |",
        "| target_modules | `query, value` |",
        "| accuracy | `0.91` |",
    ):
        assert line in text
    assert "````yaml\nmodel: x\n# ``` a fence\n````" in text
    assert 'model = BertForSequenceClassification.from_pretrained("bert", num_labels=3)' in text
    code = text.split("```python\n")[1].split("```")[0]
    assert code.splitlines()[-1] == 'load_adapter(model, "me/film")'
    namespace: dict[str, Any] = {}
    torch.manual_seed(9)
    exec(code, namespace)  # as a reader would, in the folder that holds the base
    assert torch.equal(namespace["model"].classifier.bias, read_folder("adapter")[1]["classifier.bias"])


def test_a_base_on_the_hub_is_named_in_the_front_matter() -> None:
    adapter = attach(base(), GPartConfig(d=5, target_modules="0|2", isometric=False, modules_to_save=None))
    text = card("me/film", adapter.manifest(), {}, Told("google-bert/none-such"))
    assert matter_of(text)["base_model"] == "google-bert/none-such"
    assert matter_of(text)["base_model_relation"] == "adapter"
    assert "| isometric | `False` |" in text
    assert r"| target_modules | `0\|2` |" in text
    assert "modules_to_save" not in text


def test_what_is_told_stays_text() -> None:
    adapter = attach(base(), GPartConfig(d=5, target_modules=["0"]))
    hostile = 'x`\n---\nlibrary_name: other\n---\n<script>alert(1)</script> ")\nimport os  # '
    text = card("me/film", adapter.manifest(), {}, Told(hostile, {"a|b": 1.0}, [hostile, "- x: y"], hostile))
    matter = matter_of(text)
    assert matter["library_name"] == "gpart"
    assert matter["datasets"] == [" ".join(hostile.split()), "- x: y"]
    body = text.split("---\n", 2)[2].split("## Recipe")[0]
    assert not [line for line in body.splitlines() if line.startswith(("---", "<", "import os", "library_name"))]


def test_a_card_that_is_there_is_left(hub: hub_stub.Hub, capsys: pytest.CaptureFixture[str]) -> None:
    as_json(capsys, "push", "adapter", NAME)
    hub.commit(NAME, {README: b"# edited on the hub"})
    said = as_json(capsys, "push", "adapter", NAME, "--metric", "f1=1")
    assert "--overwrite-card" in said["card"]
    assert README not in said["files"]
    assert hub.files(NAME)[README] == b"# edited on the hub"
    as_json(capsys, "push", "adapter", NAME, "--metric", "f1=1", "--overwrite-card")
    assert "| f1 | `1` |" in hub.files(NAME)[README].decode()
    Path("adapter/README.md").write_text("# the folder's own")
    assert as_json(capsys, "push", "adapter", NAME)["card"] == "the folder's own README.md"
    assert hub.files(NAME)[README] == b"# the folder's own"
    asked = len(hub.asked)
    said = refused(capsys, "push", "adapter", NAME, "--metric", "f1=0.5")
    assert "adapter has a README.md, which is pushed as it is" in said
    assert len(hub.asked) == asked
    as_json(capsys, "push", "adapter", NAME, "--metric", "f1=0.5", "--overwrite-card")
    assert "| f1 | `0.5` |" in hub.files(NAME)[README].decode()


def test_a_branch_of_its_own(hub: hub_stub.Hub, capsys: pytest.CaptureFixture[str]) -> None:
    as_json(capsys, "push", "adapter", NAME, "--revision", "v2")
    assert CONFIG not in hub.files(NAME)
    assert CONFIG in hub.files(NAME, "v2")
    assert "no adapter at me/film on the hub" in refused(capsys, "pull", NAME, "back")
    as_json(capsys, "pull", NAME, "back", "--revision", "v2")
    as_json(capsys, "pull", f"{NAME}@v2", "again")
    assert content("back") == content("again")


def test_an_adapter_in_a_models_folder_and_one_in_a_checkpoint(
    hub: hub_stub.Hub,
    lit_class: type,
    lit_trainer: Callable[..., Any],
    lit_loader: Callable[[], Any],
    lit_gpart: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("model").mkdir()
    Path("model/config.json").write_text("{}")
    adapted().save("model")
    as_json(capsys, "push", "model", NAME)
    assert hub.files(NAME)[TENSORS] == Path("model/gpart", TENSORS).read_bytes()
    assert "config.json" not in hub.files(NAME)
    gpart = lit_gpart(module="net")
    trainer = lit_trainer(callbacks=[gpart])
    trainer.fit(lit_class(), lit_loader())
    trainer.save_checkpoint("run.ckpt")
    as_json(capsys, "push", "run.ckpt", "me/lit")
    loaded = load_adapter(lit_class().net, "me/lit")
    assert torch.equal(loaded.theta, gpart.adapter.theta)


@pytest.mark.parametrize("file", [CONFIG, TENSORS])
def test_a_damaged_adapter_is_not_pushed(hub: hub_stub.Hub, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    content_now = bytearray(Path("adapter", file).read_bytes())
    content_now[-9] ^= 1
    Path("adapter", file).write_bytes(content_now)
    said = refused(capsys, "push", "adapter", NAME)
    assert "was changed" in said or "is no JSON" in said
    assert not hub.asked


@pytest.mark.parametrize("file", [CONFIG, TENSORS])
def test_a_damaged_download_leaves_nothing(
    hub: hub_stub.Hub, tmp_path: Path, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    as_json(capsys, "push", "adapter", NAME)
    hub.damage = lambda name, text: text[:-9] + bytes([text[-9] ^ 1]) + text[-8:] if name == file else text
    said = refused(capsys, "pull", NAME, "back")
    assert "was changed" in said or "is no JSON" in said
    assert not Path("back").exists()
    assert not leftovers(tmp_path)


def test_what_was_there_stays_where_the_download_fails(
    hub: hub_stub.Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    as_json(capsys, "push", "adapter", NAME)
    as_json(capsys, "pull", NAME, "back")
    before = content("back")
    assert "is there already and holds README.md, adapter_config.json" in refused(capsys, "pull", NAME, "back")
    hub.sizes[TENSORS] = LIMITS[TENSORS] + 1
    assert "more than the" in refused(capsys, "pull", NAME, "back", "--force")
    assert content("back") == before
    hub.sizes.clear()
    Path("back/mine").write_text("x")
    assert "OUT back holds mine, which this command does not write" in refused(capsys, "pull", NAME, "back", "--force")
    Path("back/mine").unlink()
    as_json(capsys, "pull", NAME, "back", "--force")
    assert content("back") == before
    assert not leftovers(tmp_path)


def hostile(
    name: str = "default", theta: torch.Tensor | None = None, more: torch.Tensor | None = None, **changes: Any
) -> dict[str, bytes]:
    """An adapter whose checksums are right, made by someone who wants harm."""
    import hashlib

    from gpart.serialization import folder as real

    manifest = {**attach(base(), GPartConfig(d=5, target_modules=["0"])).manifest().to_dict(), "name": name, **changes}
    theta = torch.zeros(5) if theta is None else theta
    tensors = save({f"gpart.{name}.theta": theta, **({} if more is None else {"1.bias": more})})
    described = {**real.KIND, **manifest, "tensors_sha256": hashlib.sha256(tensors).hexdigest()}
    text = real._render({**described, "sha256": real._content_hash(real._render(described))})
    return {CONFIG: text.encode(), TENSORS: tensors}


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (hostile(name="../../etc/cron"), "adapter"),
        (hostile(name="a/b"), "adapter"),
        (hostile(theta=torch.zeros(6)), "must hold a theta of 5 numbers, it has one of shape [6]"),
        (hostile(theta=torch.full((5,), float("nan"))), "5 of the 5 numbers of gpart.default.theta are NaN"),
        (hostile(more=torch.full((2,), float("nan"))), "2 of the 2 numbers of 1.bias are NaN"),
        (hostile(scheme="../../etc/passwd"), "scheme"),
        ({**hostile(), CONFIG: b"[" * 100_000}, "is no JSON"),
        ({**hostile(), CONFIG: b'{"peft_type": "LORA"}'}, "holds an adapter of PEFT"),
    ],
)
def test_a_hostile_repository_leaves_nothing(
    hub: hub_stub.Hub, tmp_path: Path, files: dict[str, bytes], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.commit(NAME, files)
    assert says in refused(capsys, "pull", NAME, "back")
    assert not Path("back").exists()
    assert not leftovers(tmp_path)


def test_a_whole_repository_made_so_would_be_pulled(hub: hub_stub.Hub, capsys: pytest.CaptureFixture[str]) -> None:
    hub.commit(NAME, {**hostile(), "../outside.py": b"x", "setup.py": b"raise SystemExit"})
    as_json(capsys, "pull", NAME, "back")
    assert set(content("back")) == {CONFIG, TENSORS}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["push", "adapter", "film"], "is no name on the hub"),
        (["push", "adapter", "me/../film"], "is no name on the hub"),
        (["push", "adapter", NAME, "--revision", "../x"], "is no name on the hub"),
        (["push", "nowhere", NAME], "no adapter at nowhere"),
        (["push", "adapter", NAME, "--metric", "accuracy"], "--metric must be NAME=NUMBER"),
        (["push", "adapter", NAME, "--metric", "accuracy=high"], "--metric must be NAME=NUMBER"),
        (["push", "adapter", NAME, "--recipe", "nowhere.yaml"], "--recipe nowhere.yaml: there is no such file"),
        (["push", "adapter"], "the following arguments are required: USER/NAME"),
        (["pull", "film", "back"], "is no name on the hub"),
        (["pull", f"{NAME}@a", "back", "--revision", "b"], "is no name on the hub"),
        (["pull", NAME, "adapter/../adapter"], "is there already"),
        (["pull", NAME], "the following arguments are required: OUT"),
    ],
)
def test_it_is_refused_before_the_hub_is_asked(
    hub: hub_stub.Hub, words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in refused(capsys, *words)
    assert not hub.asked


def test_who_may_not_is_told(
    hub: hub_stub.Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    said = refused(capsys, "push", "adapter", NAME)
    assert "me/film" in said
    assert "401" in said
    assert "hf_other" not in said
    assert "no such repository on the hub" in refused(capsys, "pull", NAME, "back")


@pytest.mark.parametrize("text", ["", "=", "=1", "a=", "a=b", "a", "\n=1", "`=1"])
def test_a_metric_that_is_none(text: str) -> None:
    with pytest.raises(GPartError, match="--metric must be NAME=NUMBER"):
        parse_metric(text)
