"""``gpart merge``: a plain folder that computes what the base with the adapter does."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_words import as_json, refused
from safetensors.torch import load_file
from tiny_bases import SMALL, bert_folder, classifier, leftovers, trained
from torch import Tensor, nn

from gpart import GPartConfig, attach, load_adapter
from gpart.adapter import GPartAdapter
from gpart.bases.models import load_base, quiet
from gpart.cli import main
from gpart.cli import merge as command
from gpart.errors import GPartError

Same = Callable[[Tensor, Tensor], bool]
SEVERAL = Path(__file__).parent.parent / "files" / "several"
EXPORT = ["export", "adapter", "out", "--to", "peft-lora", "--rank", "1", "--base"]
IDS = torch.arange(1, 13).reshape(2, 6)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and an adapter with a head on it."""
    above = tmp_path_factory.mktemp("made")
    trained(classifier(bert_folder(above / "base")), above / "adapter", modules_to_save=["classifier"])
    return above


@pytest.fixture
def base(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copies of both, below the working folder."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "base"


def on_base(base: Path) -> GPartAdapter:
    """The adapter loaded in Python."""
    return load_adapter(classifier(base), base.parent / "adapter")


def test_the_folder_is_transformers_own_and_has_the_merged_bits(
    base: Path, tmp_path: Path, same_bits: Same, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    adapter = on_base(base)
    wanted = {**adapter.base_parameters(), **adapter.merged_weights(), **adapter.saved_parameters()}
    outputs = adapter.model(IDS).logits
    said = as_json(capsys, "merge", "base", "adapter", "out")
    assert said["model"] == "BertForSequenceClassification"  # the folder's config names BertModel
    assert (said["d"], said["D"], said["weights"], said["dtype"]) == (30, 4 * 16 * 16, 4, "float32")
    assert said["outputs"]["merged"] == said["outputs"]["again"] == 0
    assert said["outputs"]["update"] > 1e-4
    stored = load_file("out/model.safetensors")
    assert set(stored) == set(wanted)
    assert all(same_bits(stored[name], value) for name, value in wanted.items())
    plain = AutoModelForSequenceClassification.from_pretrained("out").eval()
    assert torch.equal(plain(IDS).logits, outputs)
    assert type(plain).__name__ == "BertForSequenceClassification"
    assert AutoTokenizer.from_pretrained("out")("a b")["input_ids"]


def test_json_has_no_number_that_json_lacks(
    base: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the outputs of a half-width model overflow."""
    monkeypatch.setattr(command, "largest_difference", lambda *_: float("inf"))
    monkeypatch.setattr("gpart.cli.export.total_error", lambda *_: float("nan"))
    said = as_json(capsys, "merge", "base", "adapter", "out")["outputs"]
    assert (said["update"], said["merged"], said["again"]) == (None, None, None)
    assert as_json(capsys, *EXPORT[:2], "lora", *EXPORT[3:], "base")["error"] is None


def test_the_base_that_the_adapter_names(
    base: Path, made: Path, same_bits: Same, capsys: pytest.CaptureFixture[str]
) -> None:
    said = as_json(capsys, "merge", "--dtype", "float32", "adapter", "--force", "out")
    assert said["base"] == str(made / "base")
    wanted, stored = on_base(base).merged_weights(), load_file("out/model.safetensors")
    assert all(same_bits(stored[name], value) for name, value in wanted.items())


def test_an_adapter_of_a_named_base_that_is_not_here(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = classifier(base)
    net.config._name_or_path = "/nowhere/base"
    trained(net, Path("moved"), modules_to_save=["classifier"])
    said = refused(capsys, "merge", "moved", "out")
    assert (
        "moved was trained on '/nowhere/base', which it names, and that cannot be loaded here: there is no model"
        in said
    )
    assert as_json(capsys, "merge", "base", "moved", "out")["base"] == "base"


@pytest.mark.parametrize("beside", [False, True])
def test_an_adapter_that_lies_beside_the_bases_config(
    beside: bool, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Transformers reads it as PEFT's."""
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(Path("adapter", name), base)
    said = refused(capsys, "merge", "base", "base" if beside else "adapter", "out")
    assert (
        "base 'base' holds an adapter of GPart beside its config.json, which Transformers takes for one of PEFT's"
        in said
    )
    assert "move adapter_config.json and adapter_model.safetensors to a folder of their own" in said


@pytest.mark.parametrize("how", ["merge", "load_adapter"])
def test_a_file_that_names_a_function_as_its_base_runs_nothing(
    how: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []
    monkeypatch.setattr(shutil, "hostile", lambda: called.append("run"), raising=False)
    net = classifier(base)
    net.config._name_or_path = "python:shutil:hostile"
    trained(net, tmp_path / "hostile", modules_to_save=["classifier"])
    if how == "merge":
        assert "names the base 'python:shutil:hostile'" in refused(capsys, "merge", str(tmp_path / "hostile"), "out")
    else:
        with pytest.raises(GPartError, match="names the base 'python:shutil:hostile', which would run that function"):
            load_adapter(str(tmp_path / "hostile"))
    assert called == []


def test_an_adapter_that_names_no_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(nn.Sequential(nn.Linear(6, 8)), tmp_path / "small", target_modules=["0"])
    said = refused(capsys, "merge", str(tmp_path / "small"), str(tmp_path / "out"))
    assert "does not say which base it was trained on (Sequential with fingerprint" in said


def test_what_belongs_to_the_base_is_copied_and_nothing_else(base: Path, tmp_path: Path) -> None:
    assert main(["merge", "base", "adapter", "made/out"]) == 0
    found = {path.name for path in Path("made/out").iterdir()}
    assert found == {"README.md", "config.json", "model.safetensors", "tokenizer_config.json", "vocab.txt", "LICENSE"}
    assert Path("made/out/LICENSE").read_text() == "the base's licence"
    assert len({path.stat().st_mode for path in Path("made/out").iterdir()}) == 1
    note = Path("made/out/README.md").read_text()
    assert "needs no gpart" in note
    assert str(tmp_path) not in note
    assert not leftovers(tmp_path / "made")


def test_bfloat16_is_one_rounding_of_the_float32_sum(
    base: Path, tmp_path: Path, same_bits: Same, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = on_base(base)
    said = as_json(capsys, "merge", "base", "adapter", "out", "--dtype", "bfloat16")
    assert said["dtype"] == "bfloat16"
    assert said["outputs"]["merged"] == said["outputs"]["again"] == 0
    stored = load_file("out/model.safetensors")
    for name in (weight.name for weight in adapter.plan.weights):
        rounded = adapter.base_parameters()[name].to(torch.bfloat16)
        assert same_bits(stored[name], (rounded.float() + adapter.delta(name)).to(torch.bfloat16))


def test_what_is_printed(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["merge", "base", "adapter", "out"]) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert [line.split()[0] for line in lines[:5]] == ["base", "adapter", "merged", "weights", "outputs"]
    assert "input_ids [2, 16]" in lines[4]
    assert sum(line.endswith(": 0, bit for bit") for line in lines) == 2
    assert max(map(len, lines)) <= 120
    assert said.err == ""


def test_a_causal_model_keeps_the_dtype_of_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    monkeypatch.chdir(tmp_path)
    config = LlamaConfig(**{**SMALL, "num_key_value_heads": 1, "tie_word_embeddings": True})
    with quiet():
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained("base")
        adapter = trained(AutoModelForCausalLM.from_pretrained("base"), tmp_path / "adapter", target_modules=["q_proj"])
    said = as_json(capsys, "merge", "base", "adapter", "out")
    assert (said["model"], said["dtype"]) == ("LlamaForCausalLM", "bfloat16")
    assert said["outputs"]["merged"] == said["outputs"]["again"] == 0
    merged = AutoModelForCausalLM.from_pretrained("out").eval()
    assert torch.equal(merged(IDS).logits, adapter.model.eval()(IDS).logits)
    assert "lm_head.weight" not in load_file("out/model.safetensors")  # tied still


def test_pixels_are_made_up_for_a_picture_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification

    monkeypatch.chdir(tmp_path)
    config = ViTConfig(**{**BERT_PICTURES, "num_labels": 2})
    with quiet():
        ViTForImageClassification(config).save_pretrained("base")
        model = AutoModelForImageClassification.from_pretrained("base", num_labels=5, ignore_mismatched_sizes=True)
    trained(model, tmp_path / "adapter", target_modules=["fc1"], modules_to_save=["classifier"])
    said = as_json(capsys, "merge", "base", "adapter", "out")
    assert said["outputs"]["inputs"] == "pixel_values [2, 1, 8, 8]"
    assert said["outputs"]["merged"] == said["outputs"]["again"] == 0
    assert json.loads(Path("out/config.json").read_text())["id2label"]["4"]  # five classes, where the base had two


BERT_PICTURES = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 8,
    "patch_size": 4,
    "num_channels": 1,
}


def test_a_timm_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import timm

    monkeypatch.chdir(tmp_path)
    timm.models.save_for_hf(timm.create_model("test_vit4", num_classes=7, img_size=32), "base", safe_serialization=True)
    model = timm.create_model("local-dir:base", pretrained=True, num_classes=4)
    adapter = trained(model, tmp_path / "adapter", target_modules=["qkv"], modules_to_save=["head"])
    as_json(capsys, "merge", "base", "adapter", "out")
    said = as_json(capsys, "merge", "base", "adapter", "out", "--force")  # all that is there is of its kind
    assert said["outputs"]["merged"] == said["outputs"]["again"] == 0
    plain = timm.create_model("local-dir:out", pretrained=True).eval()
    pictures = torch.randn(1, 3, *plain.pretrained_cfg["input_size"][1:])
    assert torch.equal(plain(pictures), adapter.model.eval()(pictures))
    assert plain.num_classes == 4
    assert load_base("timm:base").kind == load_base("base").kind == "timm"


FACTORY = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second, self.tied = nn.Linear(4, 6), nn.Linear(6, 4), nn.Linear(4, 6)
        self.tied.weight = self.first.weight
        {example}

    def forward(self, x):
        return self.second(self.tied(x))

def build():
    return Net()

def whole():
    return nn.ModuleDict({{"other": nn.Linear(2, 2), "model": Net()}})

def number():
    return 5
"""


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], nn.Module]:
    """Writes the user's own module, and builds its network."""

    def write(example: str) -> nn.Module:
        (tmp_path / "own_models.py").write_text(FACTORY.format(example=example))
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.delitem(sys.modules, "own_models", raising=False)
        sys.path.insert(0, str(tmp_path))
        import own_models

        model: nn.Module = own_models.build()
        return model

    yield write
    sys.modules.pop("own_models", None)


def test_a_network_of_the_users_own(
    factory: Callable[[str], nn.Module], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_model

    adapter = trained(
        factory("self.example_input_array = torch.ones(3, 4)"), tmp_path / "adapter", d=5, target_modules=["first"]
    )
    said = as_json(capsys, "merge", "python:own_models:build", "adapter", "out")
    assert said["outputs"]["inputs"] == "input 0 [3, 4]"
    assert said["outputs"]["merged"] == said["outputs"]["again"] == 0
    assert said["outputs"]["update"] > 0
    plain = sys.modules["own_models"].build()
    load_model(plain, "out/model.safetensors")
    x = torch.randn(2, 4)
    assert torch.equal(plain(x), adapter.model(x))


def test_a_function_that_returns_more_or_less_than_what_was_adapted(
    factory: Callable[[str], nn.Module], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such as the LightningModule in place of its network."""
    model = factory("pass")
    settings = {"d": 5, "target_modules": ["first"]}
    trained(sys.modules["own_models"].whole(), tmp_path / "whole", **settings)
    trained(model, tmp_path / "adapter", **settings)
    for words in (["merge", "python:own_models:whole", "adapter", "out"], [*EXPORT, "python:own_models:whole"]):
        said = refused(capsys, *words)
        assert (
            "it lacks 1 of 1 adapted weights, first.weight; its submodule 'model', a Net, has these weights. " in said
        )
        assert said.endswith("Let the function return what was adapted\n")
    said = refused(capsys, "merge", "python:own_models:build", "whole", "out")
    assert "this Net has these weights as first.weight: it is what the adapter's base has as 'model'. Let the" in said


def test_a_base_that_is_a_part_of_what_was_adapted(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(nn.ModuleDict({"model": classifier(base)}), tmp_path / "around", modules_to_save=["classifier"])
    said = refused(capsys, "merge", "base", "around", "out")
    assert "this BertModel has these weights as encoder.layer.0.attention.self.query.weight: it is what" in said
    assert said.endswith(
        " as 'model.bert'. Name a function of yours that returns what was adapted, as python:MODULE:FUNCTION\n"
    )
    said = refused(capsys, "merge", "base", "adapter", "out", "--model-class", "BertModel")
    assert "python:MODULE" not in said  # another class does


def test_a_network_that_says_not_what_it_takes_is_merged_and_that_is_said(
    factory: Callable[[str], nn.Module], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(factory("pass"), tmp_path / "adapter", d=5, target_modules=["second"])
    assert main(["merge", "python:own_models:build", "adapter", "out"]) == 0
    said = capsys.readouterr().out
    assert "weights  loaded again from there: the same bit for bit" in said
    assert "outputs  not compared: a Net has no example_input_array" in said
    assert as_json(capsys, "merge", "python:own_models:build", "adapter", "out", "--force")["outputs"] is None


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("python:own_models", "must be python:MODULE:FUNCTION"),
        ("python:no_such_module:build", "there is no module 'no_such_module'"),
        ("python:own_models:nothing", "has no function 'nothing'"),
        ("python:own_models:number", "it returned a int"),
    ],
)
def test_a_function_that_is_none(
    name: str, says: str, factory: Callable[[str], nn.Module], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(factory("pass"), tmp_path / "adapter", d=5, target_modules=["second"])
    assert says in refused(capsys, "merge", name, "adapter", "out")


def test_an_adapter_in_a_checkpoint(
    lit_class: type,
    lit_trainer: Callable[..., Any],
    lit_loader: Callable[[], Any],
    lit_gpart: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With buffers that training changed, of a module inside a LightningModule."""
    module, gpart = lit_class(), lit_gpart(module="net")
    trainer = lit_trainer(callbacks=[gpart])
    trainer.fit(module, lit_loader())
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys.modules[__name__], "built", lambda: lit_class().net, raising=False)
    monkeypatch.setitem(sys.modules, "own_lit", sys.modules[__name__])
    as_json(capsys, "merge", "python:own_lit:built", "run.ckpt", "out")
    stored = load_file("out/model.safetensors")
    gpart.adapter.merge()
    mine = {name: value for name, value in module.net.state_dict().items() if "gpart" not in name}
    assert set(stored) == set(mine)
    assert all(torch.equal(stored[name], value) for name, value in mine.items())
    assert stored["1.num_batches_tracked"] > 0


def test_the_number_of_frozen_parameters_decides_between_classes(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names and shapes fit a sequence classifier as well, whose pooler and head the adapter's base had not."""
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(2)
    masked = BertForMaskedLM(BertConfig(**SMALL))
    with quiet():
        masked.save_pretrained("masked")
    config = json.loads(Path("masked/config.json").read_text())
    Path("masked/config.json").write_text(json.dumps({**config, "architectures": None}))
    trained(masked, tmp_path / "adapter")
    assert as_json(capsys, "merge", "masked", "adapter", "out")["model"] == "BertForMaskedLM"
    said = as_json(capsys, "merge", "masked", "adapter", "named", "--model-class", "BertForMaskedLM")
    assert said["model"] == "BertForMaskedLM"
    assert "Transformers" in refused(capsys, "merge", "masked", "adapter", "x", "--model-class", "NoSuchClass")
    assert "builds no BertConfig as ViTModel" in refused(
        capsys, "merge", "masked", "adapter", "x", "--model-class", "ViTModel"
    )


def test_another_base_is_refused_or_told(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bert_folder(tmp_path / "wide", hidden_size=32)
    said = refused(capsys, "merge", "wide", "adapter", "out")
    assert "as BertForSequenceClassification 4 adapted weights have another shape" in said
    assert "here [32, 32], in the adapter [16, 16]" in said
    changed = classifier(base)
    with torch.no_grad():
        changed.bert.embeddings.word_embeddings.weight.add_(1)
    with quiet():
        changed.bert.save_pretrained("changed")
    said = refused(capsys, "merge", "changed", "adapter", "out")
    assert "was trained on another base model" in said
    assert "--no-check-base loads it all the same" in said
    assert not Path("out").exists()
    assert main(["merge", "changed", "adapter", "out", "--no-check-base"]) == 0
    said = capsys.readouterr().err
    assert said.startswith("gpart: warning: adapter was trained on another base model")
    assert said.count("\n") == 1


def test_a_packed_base_is_refused_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    monkeypatch.chdir(tmp_path)

    def packed() -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 2))
        quantize_(model[0], Int8WeightOnlyConfig())
        return model

    attach(packed(), GPartConfig(d=4, target_modules=["0"])).save("adapter")
    monkeypatch.setattr(sys.modules[__name__], "built", packed, raising=False)
    monkeypatch.setitem(sys.modules, "own_packed", sys.modules[__name__])
    said = refused(capsys, "merge", "python:own_packed:built", "adapter", "out")
    assert "0.weight is packed" in said
    assert "load the base in bfloat16 or float32 to merge, with check_base=False (--no-check-base)" in said
    assert not Path("out").exists()


def test_code_of_a_models_folder_is_not_run(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads((base / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {name: f"modeling_own.{name}" for name in ("AutoConfig", "AutoModel")}}
    (base / "config.json").write_text(json.dumps(config))
    assert "can't be loaded" in refused(capsys, "merge", "base", "adapter", "out")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere/at/all", "adapter", "out"], "there is no model 'nowhere/at/all': no such folder"),
        (["base", "./adapter2", "out"], "no adapter at adapter2: there is no such folder"),
        (["base", "base", "out"], "a model's config.json"),
        (["base", "adapter", "taken"], "is there already and holds a: give another folder, or --force"),
        (["base", "adapter", "taken", "--force"], "it is nothing that this command wrote"),
        (["base", "adapter", "adapter", "--force"], "would replace adapter, which is read"),
        (["base", "adapter", "base/../base", "--force"], "would replace base, which is read"),
        (["base", "adapter", ".", "--force"], "would replace base, which is read"),
        (["base", "adapter", "taken/a"], "is there already, and is a file"),
        (["base", "adapter", "taken/a/b"], "cannot be made"),
        (["base", "adapter", "link", "--force"], "is there already, and is a link"),
        (["base", "adapter", ""], "OUT must name a folder"),
        (
            ["base", "adapter", "s3://bucket/out"],
            "OUT s3://bucket/out is a URL, and this command writes a local folder",
        ),
        (["base", "adapter", "s3:/bucket/out"], "is a URL that lost a slash"),
        (["adapter"], "the following arguments are required: OUT"),
        (["base", "adapter", "out", "--dtype", "int8"], "invalid choice"),
        (["timm:test_vit4", "adapter", "out", "--model-class", "BertModel"], "is for Transformers' models"),
    ],
)
def test_it_is_refused_and_all_is_as_it_was(
    words: list[str], says: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("taken").mkdir()
    Path("taken/a").write_text("mine")
    Path("link").symlink_to("taken")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert says in refused(capsys, "merge", *words)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert not Path("out").exists()
    assert not any(path.name.startswith("s3:") for path in tmp_path.iterdir())
    assert not leftovers(tmp_path)


def test_a_file_url_is_the_local_folder(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["merge", "base", "adapter", f"file://{tmp_path}/out"]) == 0
    assert Path("out/model.safetensors").is_file()
    assert main(["export", "adapter", f"file://{tmp_path}/lora", *EXPORT[3:], "base"]) == 0
    assert f"from_pretrained(model, '{tmp_path}/lora')" in capsys.readouterr().out
    assert not any(path.name.startswith("file:") for path in tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["merge", "timm:base", "adapter", "base"], "would replace base, which is read"),
        (["merge", "timm:local-dir:base", "adapter", "base"], "would replace base, which is read"),
        (["merge", "base", "file://HERE/adapter", "adapter"], "which is read"),
        (["export", "adapter", "base", "--to", "peft-lora", "--rank", "1"], "would replace HERE/base, which is read"),
        (["export", "file://HERE/adapter", "adapter", "--to", "authors"], "would replace HERE/adapter, which is read"),
        (["export", "model", "model/gpart", "--to", "authors"], "would replace model/gpart, which is read"),
        (["export", "model", "model", "--to", "authors"], "would replace model/gpart, which is read"),
        (["export", "one.ckpt", ".", "--to", "authors"], "would replace one.ckpt, which is read"),
    ],
)
def test_what_is_read_is_never_replaced_however_it_is_named(
    words: list[str], says: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "timm" in words[1]:
        shutil.rmtree("base")
        Path("base").mkdir()
        Path("base/config.json").write_text(json.dumps({"architecture": "test_vit4"}))
        Path("base/model.safetensors").write_bytes(b"weights")
    else:  # the adapter's own base is the copy
        trained(classifier(base), Path("adapter"), modules_to_save=["classifier"])
    Path("base/merged").mkdir()
    for folder in ("base", "base/merged"):
        Path(folder, "adapter_config.json").write_text("{}")  # so that it passes for what export wrote
        Path(folder, "config.json").touch()
    Path("model").mkdir()
    shutil.copytree("adapter", "model/gpart")
    shutil.copy("base/config.json", "model")
    shutil.copy(SEVERAL / "run.ckpt", "one.ckpt")
    words = [word.replace("HERE", str(tmp_path)).replace("one.ckpt", "one.ckpt:first") for word in words]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert says.replace("HERE", str(tmp_path)) in refused(capsys, *words, "--force")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_force_replaces_a_model_as_a_whole(base: Path, tmp_path: Path) -> None:
    Path("out").mkdir()  # an empty folder is no model
    assert main(["merge", "base", "adapter", "out"]) == 0
    stale = Path("out/model-00001-of-00002.safetensors")
    stale.write_bytes(b"of a former model")
    assert main(["merge", "base", "adapter", "out", "--force"]) == 0
    assert not stale.exists()
    assert not leftovers(tmp_path)


@pytest.mark.parametrize("command", ["merge", "export"])
def test_force_leaves_a_folder_that_holds_anything_of_the_users_own(
    command: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["base", "adapter", "out"] if command == "merge" else ["adapter", "out", *EXPORT[3:], "base"]
    assert main([command, *more]) == 0
    assert main([command, *more, "--force"]) == 0  # over its own
    for name in ("thesis.txt", "src/train.py", "last.ckpt", "train.py", "weights.safetensors"):
        own = Path("out", name)
        own.parent.mkdir(exist_ok=True)
        own.write_text("mine")
        said = refused(capsys, command, *more, "--force")
        assert (
            f"OUT out holds {Path(name).parts[0]}, which this command does not write and --force would delete" in said
        )
        assert own.read_text() == "mine"
        shutil.rmtree(own.parent) if own.parent.name == "src" else own.unlink()
    assert main([command, *more, "--force"]) == 0
    assert not leftovers(tmp_path)


def test_nothing_is_at_out_before_all_is_checked(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What its library loads again is another model: as if a weight were not written."""
    real = command.load_again

    def another(made: Any, folder: Path) -> nn.Module:
        assert not Path("out").exists()
        assert folder.name.startswith(".out.")  # what a killed process leaves
        assert (folder / "model.safetensors").exists()
        model = real(made, folder)
        with torch.no_grad():
            model.classifier.bias[0] += 1e-3
        return model

    monkeypatch.setattr(command, "load_again", another)
    assert "1 tensors differ, classifier.bias; nothing was written" in refused(
        capsys, "merge", "base", "adapter", "out"
    )
    assert not Path("out").exists()
    assert not leftovers(tmp_path)


def test_what_was_there_stays_where_the_last_step_fails(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["merge", "base", "adapter", "out"]) == 0
    before = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    real = os.replace

    def fails(source: Any, target: Any) -> None:
        if str(source).endswith(".part") and Path(target).name == "out":
            raise OSError("no space left on the device")
        real(source, target)

    monkeypatch.setattr("gpart.cli.folders.os.replace", fails)
    with pytest.raises(OSError, match="no space left"):
        main(["merge", "base", "adapter", "out", "--force"])
    assert {path.name: path.read_bytes() for path in Path("out").iterdir()} == before
    assert not leftovers(tmp_path)


def of_several() -> nn.Module:
    """The network of ``tests/files/make_several.py``."""
    net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 4))
    with torch.no_grad():
        for number, value in enumerate(net.parameters()):
            value.copy_((torch.arange(value.numel()) * 37 % 101 - 50).view(value.shape) / 64 + number / 8)
    return net


@pytest.mark.parametrize("name", ["first", "second-1"])
def test_one_of_a_checkpoints_several_adapters(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys.modules[__name__], "built", of_several, raising=False)
    monkeypatch.setitem(sys.modules, "own_several", sys.modules[__name__])
    base, run = "python:own_several:built", SEVERAL / "run.ckpt"
    assert "holds several adapters, ['first', 'second-1']: name one" in refused(capsys, "merge", base, str(run), "out")
    said = refused(capsys, "merge", base, f"{run}:third", "out")
    assert f"{run} holds no adapter 'third': it holds 'first', 'second-1'" in said
    as_json(capsys, "merge", base, f"{run}:{name}", "out")
    adapter = load_adapter(of_several(), SEVERAL / name)
    adapter.merge()
    stored = load_file("out/model.safetensors")
    assert torch.equal(stored["0.weight"], adapter.base_parameters()["0.weight"] + adapter.delta("0.weight"))
    assert not torch.equal(stored["0.weight"], of_several()[0].weight)
