"""The authors' folders: their W0 + P·theta to the bit, their two files back again, and nothing by a guess."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from authors_folders import CONFIG, THETA, write_theirs
from projection_maps import groups
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gpart import GPartConfig, attach, get_adapters, load_adapter
from gpart.errors import GPartError, GPartFileError
from gpart.loading import load_authors_adapter
from gpart.serialization.authors import export_authors, read_authors, write_authors

LOADED = "ignore:.*no D, no list of weights:UserWarning"


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(6, 4, bias=False)


class Net(nn.Module):
    """Names as a Transformers encoder has them, with a head and an embedding that has a padding row."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(9, 6, padding_idx=0)
        self.layers = nn.ModuleList([Layer(), Layer()])
        self.classifier = nn.Linear(4, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x, y = self.embed(ids), 0
        for layer in self.layers:
            y = y + layer.query(x) * layer.key(x) + layer.value(x)
        return self.classifier(y).sum(1)


IDS = torch.arange(8).view(2, 4)
HEAD = {"classifier.weight": torch.arange(12.0).view(3, 4) / 8, "classifier.bias": torch.tensor([1.0, 2.0, -1.0])}


def merged_by_the_facts(folder: Path, names: list[str]) -> dict[str, Tensor]:
    """W0 + P·theta by ``authors.md`` in numpy: (theta * scale)[groups] in float32, added, over whole weights in order."""
    config, theta = json.loads((folder / "adapter_config.json").read_text()), None
    theta = load_file(folder / "adapter_model.safetensors")[THETA].numpy()
    base = {name: Net().get_parameter(name).detach().numpy() for name in names}
    size, backend = sum(value.size for value in base.values()), config["assignment_backend"]
    backend = {"implicit_stateless_v1": "stateless", "legacy_streaming": "materialized"}.get(backend, backend)
    of = groups(f"authors-{backend}", size, config["d"], config["proj_seed"])
    counts = np.maximum(np.bincount(of, minlength=config["d"]), 1).astype(np.float32)
    scale = (np.float32(1) / np.sqrt(counts)) if config["isometric"] else np.float32(1)
    update, at, found = (theta * scale)[of], 0, {}
    for name, value in base.items():
        found[name] = torch.from_numpy(value + update[at : at + value.size].reshape(value.shape))
        at += value.size
    return found


QV = [f"layers.{number}.{name}.weight" for number in (0, 1) for name in ("query", "value")]
QKB = [
    f"layers.{number}.{name}.{kind}" for number in (0, 1) for name in ("query", "key") for kind in ("weight", "bias")
]


@pytest.mark.filterwarnings(LOADED)
@pytest.mark.parametrize(
    ("names", "settings"),
    [
        (QV, {}),
        (QV, {"assignment_backend": "materialized"}),
        (QV, {"assignment_backend": "legacy_streaming", "proj_seed": 7}),
        (QV, {"assignment_backend": "implicit_stateless_v1", "isometric": False}),
        (QKB, {"target_modules": ["key", "query"], "bias": "all"}),
        (QKB, {"target_modules": "layers.*(query|key)", "bias": "gpart_only", "assignment_backend": "materialized"}),
        (["embed.weight", *QV], {"target_modules": ["value", "embed", "query"]}),  # with the row of padding_idx
        (QV, {"d": 96, "fan_in_fan_out": True}),  # more groups are empty than not
    ],
)
def test_the_model_is_theirs_to_the_bit(tmp_path, names, settings):
    folder = write_theirs(tmp_path / "theirs", HEAD, **settings)
    model = Net()
    adapter = load_authors_adapter(model, folder)
    wanted = merged_by_the_facts(folder, names)
    assert [weight.name for weight in adapter.plan.weights] == names
    found = adapter.merged_weights()
    assert all(found[name].equal(value) for name, value in wanted.items())
    assert all(model.get_parameter(name).equal(value) for name, value in HEAD.items())
    assert adapter.config.modules_to_save == ["classifier"]

    ours = tmp_path / "ours"  # and ours is checked from then on
    adapter.save(ours)
    again = load_adapter(Net(), ours)
    assert again.merged_weights()[names[0]].equal(wanted[names[0]])
    model.eval()
    with torch.no_grad():
        assert again.model.eval()(IDS).equal(model(IDS))

    back = tmp_path / "back"  # and theirs again
    export_authors(ours, back)
    one, other = (load_file(each / "adapter_model.safetensors") for each in (folder, back))
    assert one.keys() == other.keys()
    assert all(one[key].equal(other[key]) for key in one)
    assert read_authors(back)[0] == read_authors(folder)[0] == adapter.config


def test_the_settings_are_theirs(tmp_path):
    config, tensors = read_authors(
        write_theirs(tmp_path, HEAD, without=("proj_seed", "isometric", "bias", "fan_in_fan_out"))
    )
    assert config == GPartConfig(
        23, ["query", "value"], ["classifier"], seed=42, dropout=0.1, projection="authors-stateless"
    )
    assert set(tensors) == {"gpart.default.theta", *HEAD}
    config, tensors = read_authors(
        write_theirs(tmp_path / "bare", {}, modules_to_save=None, exclude_modules=["b", "a"])
    )
    assert config.modules_to_save is None
    assert config.exclude_modules == ["a", "b"]
    assert set(tensors) == {"gpart.default.theta"}


def test_what_is_written_says_the_map_in_their_words(tmp_path):
    config = GPartConfig(
        3, ["query"], ["classifier"], seed=5, bias="all", dropout=0.25, projection="authors-materialized"
    )
    write_authors(tmp_path, config, {"gpart.a.theta": torch.ones(3), **HEAD}, "a")
    described = json.loads((tmp_path / "adapter_config.json").read_text())
    assert described.keys() <= CONFIG.keys()
    expected = {"peft_type": "GPART", "d": 3, "proj_seed": 5, "assignment_backend": "materialized", "bias": "all",
                "gpart_dropout": 0.25, "isometric": True, "grouping_strategy": "random", "projection_type": "partition",
                "partition_scope": "global", "modules_to_save": ["classifier"], "target_modules": ["query"]}  # fmt: skip
    assert described.items() >= expected.items()
    assert set(load_file(tmp_path / "adapter_model.safetensors")) == {
        THETA,
        *(f"base_model.model.{name}" for name in HEAD),
    }
    assert read_authors(tmp_path)[0] == config


@pytest.mark.filterwarnings(LOADED)
def test_a_file_that_does_not_name_its_map_asks(tmp_path):
    folder = write_theirs(tmp_path, HEAD, without=("assignment_backend",))
    with pytest.raises(
        GPartError, match=r"names no assignment_backend.*backend='materialized'.*2026-06-08.*2026-07-22"
    ):
        read_authors(folder)
    assert read_authors(folder, "materialized")[0].projection == "authors-materialized"
    assert load_authors_adapter(Net(), folder, backend="stateless").config.projection == "authors-stateless"
    named = write_theirs(tmp_path / "named", HEAD)
    assert read_authors(named, "stateless")[0].projection == "authors-stateless"
    with pytest.raises(GPartError, match="assignment_backend='stateless', and backend='materialized' was given"):
        read_authors(named, "materialized")
    with pytest.raises(GPartError, match="'stateless' or 'materialized', got 'legacy_streaming'"):
        read_authors(folder, "legacy_streaming")  # type: ignore[arg-type]


def test_what_cannot_be_checked_is_said(tmp_path):
    folder = write_theirs(tmp_path, HEAD)
    with pytest.warns(
        UserWarning, match=r"no D, .* D = 96 weights, from layers.0.query.weight to layers.1.value.weight"
    ):
        load_authors_adapter(Net(), folder)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            {"grouping_strategy": "signed_magnitude"},
            "grouping_strategy='signed_magnitude'.*only 'random': its groups come",
        ),
        ({"projection_type": "fastfood"}, "projection_type='fastfood'.*torch's generators"),
        ({"partition_scope": "transformer_block"}, "partition_scope='transformer_block'"),
        ({"layers_to_transform": [0]}, r"layers_to_transform=\[0\].*PEFT's"),
        ({"layers_to_transform": 0, "layers_pattern": "layers"}, "layers_pattern='layers'"),
        ({"assignment_backend": "other"}, "assignment_backend='other'; known are"),
        ({"assignment_backend": ["stateless"]}, r"assignment_backend=\['stateless'\]"),
        ({"bias": "lora_only"}, "bias.*'lora_only'"),
        ({"d": "23"}, "d must be a whole number"),
        ({"d": 24}, r"has shape \[23\], its d is 24"),
        ({"proj_seed": -1}, "seed.*-1"),
        ({"proj_seed": None}, "seed.*None"),
        ({"gpart_dropout": 2}, "dropout.*2"),
        ({"isometric": "yes"}, "isometric.*'yes'"),
        ({"target_modules": None}, "target_modules"),
        ({"target_modules": [5]}, "target_modules.*5"),
        ({"modules_to_save": ["pooler"]}, "classifier.bias.*which are of no module of modules_to_save=.'pooler'."),
        ({"modules_to_save": "classifier"}, "modules_to_save must be a list of names, got 'classifier'"),
        ({"peft_type": "LORA"}, "peft_type is 'LORA', not 'GPART'"),
    ],
)
def test_a_setting_that_is_not_read_is_refused_by_its_name(tmp_path, changed, words):
    folder = write_theirs(tmp_path, HEAD)
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **changed}))
    with pytest.raises(GPartError, match=words) as caught:
        read_authors(folder)
    assert str(folder) in str(caught.value)


def broken(folder: Path, how: str) -> None:
    config, tensors = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    held: dict[str, Any] = load_file(tensors)
    if how == "no folder":
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    elif how == "no tensors":
        tensors.unlink()
    elif how == "no config":
        config.unlink()
    elif how == "no json":
        config.write_bytes(b"\xff{")
    elif how == "a list":
        config.write_text("[]")
    elif how == "deep":
        config.write_text("[" * 100_000)
    elif how == "no d":
        config.write_text(json.dumps({key: value for key, value in CONFIG.items() if key != "d"}))
    elif how == "cut":
        tensors.write_bytes(tensors.read_bytes()[:-5])
    elif how == "no theta":
        save_file({key: value for key, value in held.items() if key != THETA}, tensors)
    elif how == "two-dimensional":
        save_file({**held, THETA: torch.zeros(1, 23)}, tensors)
    elif how == "strange":
        save_file({**held, "lora_A": torch.zeros(2)}, tensors)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("no folder", "no such folder"), ("no tensors", "no file adapter_model.safetensors"),
        ("no config", "no file adapter_config.json"), ("no json", "is no JSON"), ("a list", "holds a list"),
        ("deep", "is no JSON"), ("no d", "has no d; its keys"), ("cut", "is no safetensors file"),
        ("no theta", "has no tensor 'base_model.gpart_theta_d'; there are"),
        ("two-dimensional", r"shape \[1, 23\], its d is 23"), ("strange", "'lora_A'"),
    ],
)  # fmt: skip
def test_a_damaged_folder_is_refused(tmp_path, how, words):
    folder = write_theirs(tmp_path / "theirs", HEAD)
    broken(folder, how)
    with pytest.raises(GPartError, match=words) as caught:
        read_authors(folder)
    assert isinstance(caught.value, GPartFileError) == words.startswith("no ")


@pytest.mark.parametrize(
    ("saved", "settings", "words"),
    [
        (HEAD, {"target_modules": ["nothing"]}, "'nothing' matches no module"),
        ({**HEAD, "classifier.more": torch.ones(2)}, {}, "too many .*classifier.more"),
        ({"classifier.weight": HEAD["classifier.weight"]}, {}, "missing .*classifier.bias"),
        ({**HEAD, "classifier.bias": torch.ones(4)}, {}, r"classifier.bias has shape \[4\], this model needs \[3\]"),
        (HEAD, {"d": 97}, "d=97 is more than the 96 weights"),
    ],
)
def test_a_model_that_it_does_not_fit_is_as_it_was(tmp_path, saved, settings, words):
    folder, model = write_theirs(tmp_path, saved, **settings), Net()
    warnings.simplefilter("error")  # pytest puts the filters back
    with pytest.raises(GPartError, match=words) as caught:
        load_authors_adapter(model, folder)
    assert str(folder) in str(caught.value)
    assert not get_adapters(model)
    assert all(a.equal(b) and a.requires_grad for a, b in zip(model.parameters(), Net().parameters(), strict=True))


@pytest.mark.filterwarnings(LOADED)
def test_several_of_theirs_on_one_model(tmp_path):
    model = Net()
    one = load_authors_adapter(model, write_theirs(tmp_path / "a", HEAD), name="one")
    two = load_authors_adapter(model, write_theirs(tmp_path / "b", HEAD, proj_seed=1), name="two")
    assert not one.merged_weights()[QV[0]].equal(two.merged_weights()[QV[0]])
    assert two.merged_weights()[QV[0]].equal(merged_by_the_facts(tmp_path / "b", QV)[QV[0]])
    with pytest.raises(GPartError, match="carries an adapter 'one' already"):
        load_authors_adapter(model, tmp_path / "a", name="one")


def test_each_reader_names_the_other(tmp_path):
    folder = write_theirs(tmp_path / "theirs", HEAD)
    with pytest.raises(GPartError, match=r"paper's own code \(peft_type GPART\).*load_authors_adapter.*gpart import"):
        load_adapter(Net(), folder)
    attach(net := Net(), CONFIGURED).save(tmp_path / "ours")
    assert get_adapters(net)
    with pytest.raises(GPartError, match=r"GPART: not one of PEFT's, gpart\.load_adapter reads it"):
        read_authors(tmp_path / "ours")


CONFIGURED = GPartConfig(7, ["query"], ["classifier"], projection="authors-stateless")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"projection": "partition"},
            "no map of projection='partition': its groups are other ones.*'authors-stateless'",
        ),
        ({"projection": "hash"}, "projection='hash'"),
        ({"projection": "fastfood"}, "projection='fastfood'"),
        ({"slices": {"query": [[0, 3]]}}, "slices="),
        ({"target_parameters": ["key.weight"]}, "target_parameters="),
        ({"exclude_modules": ["key"]}, "exclude_modules="),
        ({"target_modules": ["query", "embed"]}, r"leaves out the row of padding_idx of \['embed.weight'\]"),
    ],
)
def test_what_theirs_cannot_hold_is_not_exported(tmp_path, settings, words):
    fields = {**CONFIGURED.to_dict(), **settings}
    attach(net := Net(), GPartConfig(**fields)).save(tmp_path / "ours")
    assert get_adapters(net)
    with pytest.raises(GPartError, match=words) as caught:
        export_authors(tmp_path / "ours", tmp_path / "out")
    assert str(tmp_path / "ours") in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_theta_that_they_would_round_is_not_written(tmp_path):
    for theta, words in (({"gpart.default.theta": torch.ones(7).double()}, "float64"), ({}, "no tensor")):
        with pytest.raises(GPartError, match=words):
            write_authors(tmp_path / "out", CONFIGURED, theta)
    assert not (tmp_path / "out").exists()
