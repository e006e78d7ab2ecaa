"""``gpart export --to peft-lora``: PEFT computes the base and the nearest update of that rank."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_words import as_json, refused
from peft import PeftModel
from safetensors.torch import load_file
from tiny_bases import bert_folder, classifier, leftovers, trained
from torch import Tensor, nn
from torch.nn import functional

from gpart.bases.models import quiet
from gpart.cli import main
from gpart.cli.lora import factors

IDS = torch.arange(1, 13).reshape(2, 6)


def tail(delta: Tensor, rank: int) -> float:
    """The smallest relative error that a matrix of this rank can have, by Eckart and Young."""
    values = np.linalg.svd(delta.detach().double().numpy(), compute_uv=False)
    return float(np.sqrt((values[rank:] ** 2).sum() / (values**2).sum()))


def own(monkeypatch: pytest.MonkeyPatch, build: Callable[[], nn.Module]) -> str:
    """The name of a base that this function returns."""
    monkeypatch.setattr(sys.modules[__name__], "built", build, raising=False)
    monkeypatch.setitem(sys.modules, "own_export", sys.modules[__name__])
    return "python:own_export:built"


def test_peft_computes_the_base_and_the_nearest_update_of_that_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    bert_folder(tmp_path / "base")
    adapter = trained(classifier(tmp_path / "base"), tmp_path / "adapter", modules_to_save=["classifier"])
    said = as_json(capsys, "export", "adapter", "out", "--to", "peft-lora", "--rank", "3", "--base", "base")
    deltas = {weight.name: adapter.delta(weight.name).detach() for weight in adapter.plan.weights}
    assert [layer["name"] for layer in said["layers"]] == list(deltas)
    for layer in said["layers"]:
        assert layer["error"] == pytest.approx(tail(deltas[layer["name"]], 3), abs=1e-5)
        assert layer["norm"] == pytest.approx(float(deltas[layer["name"]].norm()), rel=1e-5)
        assert layer["shape"] == [16, 16]
    lost = sum((layer["error"] * layer["norm"]) ** 2 for layer in said["layers"]) ** 0.5
    assert said["error"] == pytest.approx(lost / float(adapter.theta.detach().norm()), rel=1e-5)  # ‖P·theta‖ = ‖theta‖
    assert 0.3 < said["error"] < 1
    assert said["parameters"] == {"gpart": 30, "lora": 4 * 3 * (16 + 16)}
    # What PEFT makes of it, on a base that has never seen the adapter.
    with quiet():
        loaded = PeftModel.from_pretrained(classifier(tmp_path / "base"), "out").eval()
    plain = classifier(tmp_path / "base")
    stored = load_file("out/adapter_model.safetensors")
    with torch.no_grad():
        plain.classifier.load_state_dict(adapter.model.classifier.state_dict())
        for name, delta in deltas.items():
            path = f"base_model.model.{name.removesuffix('.weight')}"
            cut = stored[f"{path}.lora_B.weight"] @ stored[f"{path}.lora_A.weight"]
            assert float((delta - cut).norm() / delta.norm()) == pytest.approx(tail(delta, 3), abs=1e-5)
            plain.get_parameter(name).add_(cut)
    assert torch.allclose(loaded(IDS).logits, plain(IDS).logits, atol=1e-6)
    assert not torch.allclose(loaded(IDS).logits, adapter.model(IDS).logits, atol=1e-4)
    assert said["outputs"]["peft_from_base_and_product"] < 1e-5 < said["outputs"]["peft_from_adapter"]
    config = json.loads(Path("out/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["task_type"], config["bias"]) == (3, 3, "SEQ_CLS", "none")
    assert config["modules_to_save"] == ["classifier"]
    assert not leftovers(tmp_path)


def test_the_full_rank_keeps_all_of_it_and_what_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """GPT-2's Conv1D holds its weight the other way round, and a slice leaves zeros."""
    from transformers import GPT2Config, GPT2LMHeadModel

    monkeypatch.chdir(tmp_path)
    config = GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=60, n_positions=24)
    with quiet():
        GPT2LMHeadModel(config).save_pretrained("base")
        base = GPT2LMHeadModel.from_pretrained("base").eval()
    slices = {"c_attn": [[0, 16], [32, 48]]}
    adapter = trained(base, tmp_path / "adapter", target_modules=["c_attn", "c_fc"], slices=slices, bias="none")
    assert main(["export", "adapter", "out", "--to", "peft-lora", "--rank", "16", "--base", "base"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    lines = said.out.splitlines()
    assert lines[0].split() == ["weight", "shape", "‖P·theta‖", "error"]
    assert [line.split()[0] for line in lines[1:5]] == [weight.name for weight in adapter.plan.weights]
    assert all(line.endswith("0.0000") for line in lines[1:5])
    assert "in all    error 0.0000 at rank 16" in said.out
    assert "peft.PeftModel.from_pretrained(model, 'out')" in lines[-1]
    with quiet():
        loaded = PeftModel.from_pretrained(GPT2LMHeadModel.from_pretrained("base"), "out").eval()
    assert torch.allclose(loaded(IDS).logits, adapter.model.eval()(IDS).logits, atol=1e-5)
    config = json.loads(Path("out/adapter_config.json").read_text())
    assert (config["fan_in_fan_out"], config["task_type"], config["modules_to_save"]) == (True, "CAUSAL_LM", None)


class Mixed(nn.Module):
    """Layers of every kind that LoRA holds, and one name that ends in another."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.words = nn.Embedding(11, 8, padding_idx=0)
        self.sound = nn.Conv1d(8, 6, 3, padding=1)
        self.picture = nn.Conv2d(6, 6, (3, 1), padding=(1, 0))
        self.point = nn.Conv2d(6, 6, 1)
        self.q = nn.Linear(6, 6)
        self.inner = nn.ModuleDict({"q": nn.Linear(6, 6)})
        self.head = nn.Linear(6, 2)
        self.overhead = nn.Linear(2, 2)
        self.example_input_array = torch.tensor([[1, 2, 3, 0], [4, 5, 10, 9]])

    def forward(self, ids: Tensor) -> Tensor:
        x = self.sound(self.words(ids).transpose(1, 2))
        x = self.point(self.picture(x[..., None]))[..., 0].transpose(1, 2)
        head: Tensor = self.overhead(self.head(self.inner["q"](self.q(x).tanh())))
        return head


def test_every_kind_of_layer_and_biases_in_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    targets = r"words|sound|picture|point|q"  # not inner.q
    adapter = trained(Mixed(), tmp_path / "adapter", target_modules=targets, bias="all", modules_to_save=["head"], d=20)
    out = ["export", "adapter", "out", "--to", "peft-lora", "--base", own(monkeypatch, Mixed)]
    assert "--rank must be from 1 to 8, the largest rank that a layer can have, got 9" in refused(
        capsys, *out, "--rank", "9"
    )
    said = as_json(capsys, *out, "--rank", "8")
    assert said["biases_in_full"] == 4
    assert all(layer["error"] < 1e-6 for layer in said["layers"])
    loaded = PeftModel.from_pretrained(Mixed(), "out").eval()
    ids = torch.randint(0, 11, (3, 5))
    assert torch.allclose(loaded(ids), adapter.model.eval()(ids), atol=1e-5)
    assert not torch.allclose(Mixed()(ids), adapter.model(ids), atol=1e-2)
    adapted = {name for name, module in loaded.base_model.model.named_modules() if hasattr(module, "lora_A")}
    assert adapted == {"words", "sound", "picture", "point", "q"}
    said = as_json(capsys, *out[:2], "cut", *out[3:], "--rank", "2")
    for layer, weight in zip(said["layers"], adapter.plan.weights, strict=True):
        delta = adapter.delta(weight.name)
        wanted = tail(delta.reshape(len(delta), -1), 2) if delta.dim() > 1 else 0.0
        assert layer["error"] == pytest.approx(wanted, abs=1e-5)


def test_a_head_that_was_not_trained_is_written_where_peft_looks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """PEFT saves the head of a classifier of its own accord, and any module whose name ends in its name."""
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    monkeypatch.chdir(tmp_path)
    config = DistilBertConfig(dim=16, n_layers=1, n_heads=2, hidden_dim=24, vocab_size=60, max_position_embeddings=24)
    with quiet():
        DistilBertForSequenceClassification(config).save_pretrained("base")
        base = DistilBertForSequenceClassification.from_pretrained("base")
    adapter = trained(base, tmp_path / "adapter", target_modules=["q_lin"])
    as_json(capsys, "export", "adapter", "out", "--to", "peft-lora", "--base", "base", "--rank", "16")
    stored = load_file("out/adapter_model.safetensors")
    assert {name for name in stored if "lora" not in name} == {
        f"base_model.model.{head}.{part}" for head in ("classifier", "pre_classifier") for part in ("weight", "bias")
    }
    with quiet():
        loaded = PeftModel.from_pretrained(DistilBertForSequenceClassification.from_pretrained("base"), "out").eval()
    assert torch.allclose(loaded(IDS).logits, adapter.model.eval()(IDS).logits, atol=1e-5)


class Read(nn.Module):
    """A layer that is not called: its weight is read."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.example_input_array = torch.ones(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(functional.linear(x, self.first.weight))


def test_a_layer_that_peft_would_not_ask_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    trained(Read(), tmp_path / "adapter", target_modules=["first"], d=4)
    said = refused(
        capsys, "export", "adapter", "out", "--to", "peft-lora", "--rank", "4", "--base", own(monkeypatch, Read)
    )
    assert "PEFT does not compute base + B·A" in said
    assert not Path("out").exists()
    assert not leftovers(tmp_path)


class Awkward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.heads = nn.MultiheadAttention(8, 2, batch_first=True)
        self.groups = nn.Conv1d(8, 8, 1, groups=2)
        self.recurrent = nn.GRU(8, 8)
        self.norm = nn.BatchNorm1d(8)
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"target_modules": ["out_proj"]}, r"heads.out_proj.weight (MultiheadAttention does not call its layers"),
        ({"target_parameters": ["in_proj_weight"]}, "heads.in_proj_weight (MultiheadAttention does not"),
        ({"target_modules": ["groups"]}, "groups.weight (a parameter of Conv1d with groups=2)"),
        ({"target_parameters": ["weight_ih_l0"]}, "recurrent.weight_ih_l0 (a parameter of GRU)"),
        ({"target_modules": ["one"]}, "one.weight (shared with two.weight: LoRA would adapt one of them alone)"),
        ({"target_parameters": ["one.bias"], "d": 2}, "one.bias (a bias of Linear, whose weight is not adapted)"),
    ],
)
def test_what_lora_cannot_hold_is_refused_by_name(
    settings: dict[str, Any],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    trained(Awkward(), tmp_path / "adapter", **{"d": 4, "target_modules": None, **settings})
    said = refused(
        capsys, "export", "adapter", "out", "--to", "peft-lora", "--rank", "1", "--base", own(monkeypatch, Awkward)
    )
    assert "LoRA cannot hold" in said
    assert says in said
    assert "gpart merge keeps all of the update" in said
    assert not Path("out").exists()


def test_buffers_that_training_changed_have_no_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def built() -> nn.Module:
        model = Read()
        model.norm = nn.BatchNorm1d(2)
        return model

    adapter = trained(built(), tmp_path / "adapter", d=4, target_modules=["second"])
    adapter.model.norm.running_mean.add_(1)
    adapter.save("adapter")
    base = own(monkeypatch, built)
    said = refused(capsys, "export", "adapter", "out", "--to", "peft-lora", "--rank", "1", "--base", base)
    assert "no place for the buffers that training changed, norm.running_mean" in said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--to", "peft-lora", "--base", "base"], "needs --rank"),
        (["--to", "peft-lora", "--rank", "2"], "no adapter at adapter: there is no such folder"),
        (["--to", "peft-lora", "--rank", "0", "--base", "base"], "--rank must be from 1 to 16"),
        (["--to", "peft-lora", "--rank", "x", "--base", "base"], "invalid int value: 'x'"),
        (["--to", "ia3"], "invalid choice: 'ia3'"),
        (["--rank", "2"], "the following arguments are required: --to"),
        (["--to", "authors", "--rank", "2"], "--to authors takes no --rank"),
        (["--to", "authors", "--base", "base"], "--to authors takes no --base"),
        (["--to", "authors", "--no-check-base"], "--to authors takes no --no-check-base"),
    ],
)
def test_the_words_are_checked(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    if "0" in words:
        trained(classifier(bert_folder(tmp_path / "base")), tmp_path / "adapter", modules_to_save=["classifier"])
    assert says in refused(capsys, "export", "adapter", "out", *words)
    assert not Path("out").exists()


def test_the_authors_folder_there_and_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    bert_folder(Path("base"))
    trained(classifier(Path("base")), Path("ours"), modules_to_save=["classifier"], projection="authors-stateless")
    assert as_json(capsys, "export", "ours", "theirs", "--to", "authors") == {
        "adapter": "ours",
        "to": "authors",
        "out": "theirs",
    }
    words = ("--base", "base", "--model-class", "BertForSequenceClassification")
    assert as_json(capsys, "import", "theirs", "back", *words)["projection"] == "authors-stateless"
    ours, back = (load_file(f"{folder}/adapter_model.safetensors") for folder in ("ours", "back"))
    assert ours.keys() == back.keys()
    assert all(torch.equal(value, back[name]) for name, value in ours.items())
    trained(classifier(Path("base")), Path("v1"), modules_to_save=["classifier"])
    assert "partition" in refused(capsys, "export", "v1", "theirs-too", "--to", "authors")
    assert not Path("theirs-too").exists()


@pytest.mark.parametrize(("rows", "columns", "rank"), [(5, 9, 2), (9, 5, 5), (4, 4, 7), (1, 6, 1)])
def test_factors_are_balanced_and_filled_with_zeros(rows: int, columns: int, rank: int) -> None:
    delta = torch.randn(rows, columns)
    lora_a, lora_b = factors(delta, rank)
    assert (lora_a.shape, lora_b.shape) == ((rank, columns), (rows, rank))
    assert torch.allclose(lora_a.norm(dim=1), lora_b.norm(dim=0), atol=1e-5)
    assert float((delta - lora_b @ lora_a).norm() / delta.norm()) == pytest.approx(tail(delta, rank), abs=1e-5)
    assert int((lora_a.norm(dim=1) > 0).sum()) == min(rank, rows, columns)
