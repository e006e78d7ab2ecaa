"""What test_adapter_folder.py leaves: checkpoints by hand, writing safely, filling an attached adapter, odd bases."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import warnings
from pathlib import Path

import pytest
import torch
from accelerate import dispatch_model
from safetensors.torch import load_file, save_file
from torch import nn

from gpart import GPartConfig, attach, load_adapter
from gpart.injection.fingerprint import fingerprint
from gpart.serialization.checkpoint_file import state_digest
from gpart.serialization.folder import CONFIG, TENSORS

CONFIGURED = GPartConfig(d=4, target_modules=["0"], modules_to_save=["2"])


def base():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def trained():
    """An adapter whose theta, head and statistics have moved."""
    model = base()
    adapter = attach(model, CONFIGURED)
    with torch.no_grad():
        adapter.theta.copy_(torch.tensor([1.0, -2.0, 3.0, -4.0]))
        model[2].weight.add_(1)
        model(torch.randn(8, 4))
    model.eval()
    return adapter


X = torch.linspace(-1, 1, 12).view(3, 4)


# --- .ckpt files, as Lightning writes them ---


def checkpoint(path, adapter, module="model", **changed):
    prefix = f"{module}." if module else ""
    names = [adapter.theta_name, *adapter.saved_parameters(), *adapter.changed_buffers()]
    state = {prefix + name: value for name, value in adapter.model.state_dict().items() if name in names}
    state["other.weight"] = torch.ones(3)
    entry = {"module": module, "manifest": adapter.manifest().to_dict(), "hint": f"{prefix}how_to_load"}
    content = {"state_dict": {**state, entry["hint"]: torch.zeros(0)}, "gpart": entry, "epoch": 3}
    for key, value in changed.items():
        where, _, inner = key.partition("__")
        if inner:
            content[where] = {**content[where], inner: value}
        else:
            content[where] = value
    if isinstance(content["gpart"], dict) and isinstance(content["state_dict"], dict):
        written = {key: value for key, value in content["state_dict"].items() if key != entry["hint"]}
        content["gpart"] = {
            "sha256": state_digest(written) if all(isinstance(key, str) for key in written) else "",
            **content["gpart"],
        }
    torch.save(content, path)
    return path


@pytest.mark.parametrize("module", ["model", "task.net", ""])
def test_a_checkpoint_loads_to_equal_bits(module, tmp_path, same_bits):
    adapter = trained()
    path = checkpoint(tmp_path / "last.ckpt", adapter, module)
    if not module:  # the adapted module is the LightningModule itself: nothing of another module is in the file
        content = torch.load(path)
        del content["state_dict"]["other.weight"]
        kept = {key: value for key, value in content["state_dict"].items() if key != content["gpart"]["hint"]}
        content["gpart"]["sha256"] = state_digest(kept)
        torch.save(content, path)
    model = base()
    loaded = load_adapter(model, path)
    assert same_bits(loaded.theta, adapter.theta)
    with torch.no_grad():
        assert same_bits(model.eval()(X), adapter.model(X))
    assert loaded.config == CONFIGURED


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants:UserWarning")
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"gpart": None}, r"holds no GPart adapter; its keys are \['epoch', 'gpart', 'state_dict'\]"),
        ({"gpart__module": None}, "holds no GPart adapter"),
        ({"gpart__module": "net"}, r"missing \['2\.bias', '2\.weight', 'gpart\.default\.theta'\]"),
        ({"gpart__manifest": None}, "is no adapter's: .* holds NoneType"),
        ({"gpart__manifest": {1: 2, "a": 3}}, r"is no adapter's: .* holds \['1', 'a'\]"),
        ({"state_dict": None}, "holds no state_dict, but a NoneType"),
        ({"state_dict": [1]}, "holds no state_dict, but a list"),
        ({"state_dict": {5: torch.ones(2)}}, "holds no state_dict"),
        ({"state_dict__model.2.bias": "x"}, r"2\.bias holds a str"),
        ({"state_dict__model.2.bias": torch.zeros(2).to_sparse()}, r"2\.bias holds a Tensor without plain numbers"),
        ({"state_dict__model.2.bias": torch.zeros(2, device="meta")}, r"2\.bias holds a Tensor without plain numbers"),
        ({"state_dict__model.2.bias": torch.zeros(3)}, r"2\.bias has shape \[3\], this model needs \[2\]"),
        ({"state_dict__model.9.bias": torch.zeros(2)}, r"too many \['9\.bias'\]"),
        ({"state_dict__model.gpart.default.theta": torch.full((4,), torch.inf)}, "4 of the 4 numbers"),
    ],
)
def test_a_checkpoint_that_is_none_of_ours_is_refused(changed, said, tmp_path, state_of):
    path = checkpoint(tmp_path / "last.ckpt", trained(), **changed)
    model = base()
    state = state_of(model)
    with pytest.raises(ValueError, match=said):
        load_adapter(model, path)
    state.assert_kept()


@pytest.mark.parametrize("writes", [True, False])
@pytest.mark.parametrize("reads", [True, False])
def test_a_file_is_read_with_the_checksums_that_its_writer_gave_it(writes, reads, tmp_path):
    before = torch.serialization.get_crc32_options()
    try:
        torch.serialization.set_crc32_options(writes)
        path = checkpoint(tmp_path / "last.ckpt", trained())
        torch.serialization.set_crc32_options(reads)
        load_adapter(base(), path)
        content = path.read_bytes()
        bits = torch.ones(3).numpy().tobytes()  # other.weight
        path.write_bytes(content.replace(bits, torch.zeros(3).numpy().tobytes()))
        with pytest.raises(
            ValueError, match="its checksum differs" if writes else "was changed: its state has SHA-256"
        ):
            load_adapter(base(), path)
    finally:
        torch.serialization.set_crc32_options(before)


@pytest.mark.parametrize("count", [1 << 29, 1 << 45])
def test_a_small_file_that_claims_more_than_the_memory_is_refused(count, tmp_path, monkeypatch):
    def full(_):
        raise AssertionError("hashed")

    path = checkpoint(tmp_path / "last.ckpt", trained())
    content = torch.load(path)
    content["state_dict"]["model.gpart.default.theta"] = torch.zeros(1).expand(count)
    torch.save(content, path)
    monkeypatch.setattr("gpart.serialization.checkpoint_file.state_digest", full)
    with pytest.raises(ValueError, match=rf"theta has shape \[{count}\], {4 * count} bytes, of which the file holds 4"):
        load_adapter(base(), path)


def test_a_buffer_that_was_expanded_is_read(tmp_path):
    def made():
        model = base()
        model.register_buffer("mask", torch.ones(1).expand(1000))
        return model

    model = made()
    adapter = attach(model, CONFIGURED)
    path = checkpoint(tmp_path / "last.ckpt", adapter, **{"state_dict__model.mask": model.mask})
    assert path.stat().st_size < 8000
    load_adapter(made(), path)


def test_another_base_and_an_unknown_scheme_are_refused_from_a_checkpoint_too(tmp_path, state_of):
    path = checkpoint(tmp_path / "last.ckpt", trained())
    other = base()
    with torch.no_grad():
        other[0].bias.add_(1)
    state = state_of(other)
    with pytest.raises(ValueError, match="another base model"):
        load_adapter(other, path)
    state.assert_kept()
    with pytest.warns(UserWarning, match="another base model"):
        load_adapter(other, path, check_base=False)
    content = torch.load(path)
    content["gpart"]["manifest"]["scheme"] = "gpart-v0"
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"'gpart-v0'.*'gpart-v1'"):
        load_adapter(base(), path)


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
@pytest.mark.parametrize("kind", ["ckpt", "ckpt of torch", "tensors", "config"])
def test_no_code_in_a_file_is_run(kind, tmp_path):
    sprung, folder = tmp_path / "sprung", tmp_path / "adapter"
    trained().save(folder)
    trap = pickle.dumps(Trap(sprung))
    path = {"tensors": folder / TENSORS, "config": folder / CONFIG}.get(kind, tmp_path / "last.ckpt")
    path.write_bytes(trap)
    if kind == "ckpt of torch":
        torch.save({"state_dict": Trap(sprung)}, path)
    with pytest.raises(ValueError, match=path.name.replace(".", r"\.")):
        load_adapter(base(), path if path.suffix == ".ckpt" else folder)
    assert not sprung.exists()
    pickle.loads(trap).close()
    assert sprung.exists(), "the trap does not work"


@pytest.mark.parametrize("content", [b"", b"junk" * 50, b"PK\x03\x04" + bytes(100), b".", pickle.dumps([1])[:-1]])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
def test_a_file_that_is_no_checkpoint_says_so(content, tmp_path):
    path = tmp_path / "last.ckpt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"last\.ckpt cannot be read as a checkpoint: \S"):
        load_adapter(base(), path)


# --- what stands where the files should ---


@pytest.mark.parametrize("name", [TENSORS, CONFIG])
def test_a_folder_in_a_files_place_is_a_missing_file(name, tmp_path):
    trained().save(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(FileNotFoundError, match=f"no file {name}"):
        load_adapter(base(), tmp_path)


@pytest.mark.parametrize("name", ["nothing", "file", "nothing.ckpt", "folder.ckpt"])
def test_what_is_no_adapter_at_all_is_a_missing_one(name, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder.ckpt").mkdir()
    with pytest.raises(FileNotFoundError, match=rf"no (adapter|checkpoint) at .*{name}"):
        load_adapter(base(), tmp_path / name)


@pytest.mark.parametrize("content", ['{"a": "\\ud800"}', '{"a": 1e999}', '{"a": ' + "1" * 5000 + "}", "\x00", "null"])
def test_odd_json_is_refused_by_the_files_name(content, tmp_path):
    trained().save(tmp_path)
    (tmp_path / CONFIG).write_text(content)
    with pytest.raises(ValueError, match=CONFIG):
        load_adapter(base(), tmp_path)


@pytest.mark.parametrize("depth", [400, 900, 990, 3000, 100_000])
def test_deep_json_is_refused_by_the_files_name(depth, tmp_path):
    trained().save(tmp_path)
    (tmp_path / CONFIG).write_text('{"a": ' + "[" * depth + "]" * depth + "}")
    with pytest.raises(ValueError, match=CONFIG):
        load_adapter(base(), tmp_path)


# --- writing ---


@pytest.mark.parametrize("at", [TENSORS, CONFIG])
def test_a_save_that_is_killed_leaves_no_adapter_that_loads_wrongly(at, tmp_path, monkeypatch, same_bits):
    """Killed before the tensors are in place the old adapter loads; between the two files the pair is refused."""
    old = trained()
    old.save(tmp_path)
    new = trained()
    with torch.no_grad():
        new.theta.add_(1)
    real = os.replace

    def killed(source, target):
        if Path(target).name == at:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        new.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [CONFIG, TENSORS]
    if at == TENSORS:
        assert same_bits(load_adapter(base(), tmp_path).theta, old.theta)
    else:
        with pytest.raises(ValueError, match=f"{TENSORS} was changed or truncated"):
            load_adapter(base(), tmp_path)


def test_saving_again_replaces_both_files(tmp_path, same_bits):
    adapter = trained()
    adapter.save(tmp_path / "a" / "b")
    with torch.no_grad():
        adapter.theta.add_(1)
    adapter.save(str(tmp_path / "a" / "b"))
    assert same_bits(load_adapter(base(), str(tmp_path / "a" / "b")).theta, adapter.theta)
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == [CONFIG, TENSORS]


def test_the_config_is_small_for_names_as_long_as_transformers(tmp_path):
    """At most 2 kB, and 120 bytes for each adapted weight."""
    network = nn.Module()
    inner = network
    for name in ("model", "base_model", "roberta", "encoder", "layer"):
        inner.add_module(name, nn.Module())
        inner = inner.get_submodule(name)
    for i in range(24):
        inner.add_module(f"{i}", nn.ModuleDict({"attention": nn.ModuleDict({"self": nn.ModuleDict()})}))
        for part in ("query", "key", "value"):
            inner.get_submodule(f"{i}.attention.self")[part] = nn.Linear(2, 2)
    settings = {"target_modules": ["query", "key", "value"], "bias": "all", "dropout": 0.1, "seed": 2**64 - 1}
    attach(network, GPartConfig(d=5, **settings)).save(tmp_path)
    described = json.loads((tmp_path / CONFIG).read_text())
    assert len(described["weights"]) == 24 * 6
    assert (tmp_path / CONFIG).stat().st_size <= 2000 + 120 * 24 * 6
    assert (tmp_path / TENSORS).stat().st_size <= 4 * 5 + 1000
    assert described["weights"][0] == ["model.base_model.roberta.encoder.layer.0.attention.self.query.weight", [2, 2]]
    assert hashlib.sha256((tmp_path / TENSORS).read_bytes()).hexdigest() == described["tensors_sha256"]


# --- which buffers travel ---


class Buffers(nn.Module):
    """One buffer of each kind that could be missed."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(2, 2)
        self.register_buffer("was_nan", torch.full((2,), torch.nan))
        self.register_buffer("still_nan", torch.full((2,), torch.nan))
        self.register_buffer("flag", torch.tensor(False))
        self.register_buffer("count", torch.tensor(3))
        self.register_buffer("small", torch.zeros(2).to(torch.float8_e4m3fn))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)


def test_the_changed_persistent_buffers_travel_whatever_their_type(tmp_path):
    model = Buffers()
    adapter = attach(model, GPartConfig(d=2, target_modules=["layer"]))
    assert adapter.changed_buffers() == {}
    model.was_nan.zero_()
    model.flag.fill_(True)
    model.count.add_(1)
    model.scratch.add_(1)
    assert list(adapter.changed_buffers()) == ["was_nan", "flag", "count"]
    adapter.save(tmp_path)
    assert set(load_file(tmp_path / TENSORS)) == {"gpart.default.theta", "was_nan", "flag", "count"}
    other = Buffers()
    load_adapter(other, tmp_path)
    assert (other.was_nan.tolist(), other.flag.item(), other.count.item()) == ([0, 0], True, 4)


# --- onto an adapter that is attached already ---


@pytest.mark.parametrize("merged", [False, True])
def test_an_equal_adapter_is_filled_and_stays_merged_or_not(merged, tmp_path, same_bits):
    source = trained()
    source.save(tmp_path)
    model = base()
    adapter = attach(model, CONFIGURED)
    with torch.no_grad():
        adapter.theta.fill_(7)
    model.eval()
    if merged:
        adapter.merge()
    assert load_adapter(model, tmp_path) is adapter
    assert adapter.merged == merged
    with torch.no_grad():
        assert same_bits(model(X), source.model(X))
    adapter.detach()
    for key, value in base().state_dict().items():
        assert same_bits(model.state_dict()[key], value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"d": 5}, "d is 4 and 5"),
        ({"seed": 1}, "seed is 0 and 1"),
        ({"isometric": False}, "isometric is True and False"),
        ({"modules_to_save": None}, r"modules_to_save is \['2'\] and None"),
    ],
)
def test_a_different_adapter_is_refused_and_kept(change, said, tmp_path, state_of):
    trained().save(tmp_path)
    model = base()
    attach(model, GPartConfig(**{**CONFIGURED.to_dict(), **change}))
    state = state_of(model)
    with pytest.raises(ValueError, match=said):
        load_adapter(model, tmp_path)
    state.assert_kept()


def test_filling_what_came_from_another_folder_is_told(tmp_path):
    trained().save(tmp_path / "one")
    trained().save(tmp_path / "two")
    model = base()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            load_adapter(model, tmp_path / "one")
        load_adapter(model, tmp_path / "two", name="other")
        load_adapter(model, tmp_path / "one", name="other")
        load_adapter(base(), tmp_path / "two")
    with pytest.warns(
        UserWarning, match=r"'default' was loaded from .*one, .*numbers of .*two now.* \(name=...\) keeps"
    ):
        load_adapter(model, tmp_path / "two")
    attach(base(), GPartConfig(d=5, target_modules=["0"])).save(tmp_path / "three")
    with pytest.raises(ValueError, match=r"d is 5 and 4.*name=\.\.\.\) loads it beside"):
        load_adapter(model, tmp_path / "three")


def test_dropout_is_a_runs_own(tmp_path, same_bits):
    trained().save(tmp_path)
    adapter = attach(base(), GPartConfig(**{**CONFIGURED.to_dict(), "dropout": 0.5}))
    assert load_adapter(adapter.model, tmp_path) is adapter
    assert same_bits(adapter.theta, trained().theta)
    assert adapter.config.dropout == 0.5


def test_an_attribute_of_the_adapters_name_is_left_alone(tmp_path, state_of):
    trained().save(tmp_path)
    model = base()
    model[0].add_module("gpart", nn.Identity())
    state = state_of(model)
    with pytest.raises(ValueError, match=r"attribute 'gpart' of Linear already holds Identity"):
        load_adapter(model, tmp_path)
    state.assert_kept()


# --- tied bases and merged saves ---


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(9, 6), nn.Linear(6, 9, bias=False)
        self.head.weight = self.embed.weight


@pytest.mark.parametrize("target", ["embed", "head"])
def test_a_tied_base_saved_while_merged_is_the_same_file(target, tmp_path):
    adapter = attach(Tied(), GPartConfig(d=7, target_modules=[target]))
    with torch.no_grad():
        adapter.theta.normal_()
    adapter.save(tmp_path / "plain")
    adapter.merge()
    adapter.save(tmp_path / "merged")
    for name in (TENSORS, CONFIG):
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "merged" / name).read_bytes()
    load_adapter(Tied(), tmp_path / "merged")


def test_tensors_of_the_right_names_but_no_right_checksum_are_refused(tmp_path):
    adapter = trained()
    adapter.save(tmp_path)
    tensors = load_file(tmp_path / TENSORS)
    tensors["gpart.default.theta"] *= 2
    save_file(tensors, tmp_path / TENSORS)
    with pytest.raises(ValueError, match=r"was changed or truncated: its \d+ bytes have SHA-256 .*, the config has"):
        load_adapter(base(), tmp_path)


# --- the fingerprint of the base ---


def fingerprint_by_hand(parameters):
    """SHA-256 over names, shapes and at most 4,096 evenly spaced numbers of each tensor, as bfloat16, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(parameters.items()):
        digest.update(f"{name}{list(tensor.shape)}\n".encode())
        flat = tensor.flatten().tolist()
        chosen = [flat[i * len(flat) // 4096] for i in range(4096)] if len(flat) > 4096 else flat
        digest.update(bytes(torch.tensor(chosen).bfloat16().view(torch.uint8).tolist()))
    return digest.hexdigest()


def test_the_fingerprint_is_what_its_description_says():
    """It stands in files, so it must stay what it is."""
    parameters = {"b": torch.randn(3, 5), "a": torch.randn(4096), "c": torch.randn(5, 1000), "d": torch.zeros(0)}
    expected = fingerprint_by_hand(parameters)
    assert fingerprint(parameters, 1) == expected
    for version in (1, 2):
        expected = fingerprint(parameters, version)
        assert fingerprint(dict(reversed(parameters.items())), version) == expected
        assert fingerprint({name: value.bfloat16() for name, value in parameters.items()}, version) == expected
        assert fingerprint({**parameters, "c": parameters["c"].t().contiguous().t()}, version) == expected


@pytest.mark.parametrize(
    "changed",
    [
        {"a": torch.ones(5000), "other": torch.zeros(2, 3)},
        {"a": torch.ones(5000), "b": torch.zeros(3, 2)},
        {"a": torch.ones(5000)},
        {"a": torch.ones(5000), "b": torch.full((2, 3), 0.01)},
        {"a": torch.ones(4999), "b": torch.zeros(2, 3)},
    ],
    ids=["name", "shape", "missing", "value", "length"],
)
@pytest.mark.parametrize("version", [1, 2])
def test_the_fingerprint_tells_bases_apart(changed, version):
    assert fingerprint(changed, version) != fingerprint({"a": torch.ones(5000), "b": torch.zeros(2, 3)}, version)


def test_the_saved_modules_are_no_part_of_the_base(tmp_path):
    """A head that starts from other random numbers is no other base; any other parameter is."""
    trained().save(tmp_path)
    model = base()
    with torch.no_grad():
        model[2].weight.add_(5)
    load_adapter(model, tmp_path)
    other = base()
    with torch.no_grad():
        other[1].weight.add_(5)
    with pytest.raises(
        ValueError, match=r"another base model: fingerprint [0-9a-f]{64}, this model has [0-9a-f]{64}; of "
    ):
        load_adapter(other, tmp_path)


def test_a_foreign_base_is_named_by_its_first_parameters_and_unlooked_at_with_check_base_off(tmp_path):
    trained().save(tmp_path)
    other = base()
    with torch.no_grad():
        other[1].weight.add_(5)
    with pytest.raises(ValueError, match=r"of \d frozen parameters differ 1\.weight; check_base=False"):
        load_adapter(other, tmp_path)
    other[1].bias = nn.Parameter(
        other[1].bias.to("meta"), requires_grad=False
    )  # as accelerate leaves what is offloaded
    with pytest.raises(ValueError, match=r"1\.bias is on the meta device"):
        load_adapter(other, tmp_path)
    load_adapter(other, tmp_path, check_base=False)


def test_onto_an_offloaded_base_theta_is_real_and_an_offloaded_head_is_refused(tmp_path, same_bits):
    source = trained()
    source.save(tmp_path / "adapter")
    for head, model in (("cpu", base().eval()), ("disk", base().eval())):
        places = {"0": "disk", "1": "cpu", "2": head}
        dispatch_model(model, places, main_device="cpu", offload_dir=tmp_path / head, force_hooks=True)
        if head == "disk":
            with pytest.raises(ValueError, match=r"holds \['2.bias', '2.weight'\], which accelerate has offloaded"):
                load_adapter(model, tmp_path / "adapter", check_base=False)
            continue
        assert same_bits(load_adapter(model, tmp_path / "adapter", check_base=False).theta, source.theta)
        with torch.no_grad():
            assert same_bits(model(X), source.model(X))
