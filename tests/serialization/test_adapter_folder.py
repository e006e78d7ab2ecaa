"""The adapter folder loads to the same bits on the same base, and on nothing else."""

from __future__ import annotations

import hashlib
import json
import pickle
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gpart import GPartConfig, attach, get_adapters, load_adapter
from gpart.serialization.folder import CONFIG, TENSORS, _content_hash

CONFIGURED = GPartConfig(d=11, target_modules=["first", "second"], modules_to_save=["head"])


class Net(nn.Module):
    """Convolution, BatchNorm and a head; the base comes from a seed."""

    def __init__(self, base: int = 0, order: tuple[str, str] = ("first", "second"), width: int = 4) -> None:
        super().__init__()
        torch.manual_seed(base)
        layers = {"first": nn.Conv2d(3, width, 3, padding=1), "second": nn.Conv2d(width, 3, 3, padding=1)}
        for name in order:
            self.add_module(name, layers[name])
        self.norm, self.head = nn.BatchNorm2d(3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.second(torch.relu(self.first(x)))).mean((2, 3)))


IMAGES = torch.linspace(-1, 1, 4 * 3 * 8 * 8).view(4, 3, 8, 8)


@pytest.fixture
def trained(tmp_path: Path) -> tuple[Path, Tensor]:
    """A folder, and what the trained network gives in eval mode."""
    model = Net()
    adapter = attach(model, CONFIGURED)
    optimizer = torch.optim.SGD([value for value in model.parameters() if value.requires_grad], lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        model(IMAGES).square().sum().backward()
        optimizer.step()
    assert adapter.theta.count_nonzero() == 11
    adapter.save(tmp_path / "adapter")
    with torch.no_grad():
        return tmp_path / "adapter", model.eval()(IMAGES)


def output(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model.eval()(IMAGES)


def test_loads_to_equal_bits(trained: tuple[Path, Tensor]) -> None:
    model = Net()
    torch.manual_seed(99)
    adapter = load_adapter(model, trained[0])
    assert torch.equal(output(model), trained[1])
    assert adapter.config == CONFIGURED
    assert load_adapter(model, trained[0]) is adapter


def test_loads_in_a_fresh_process_under_another_seed(trained: tuple[Path, Tensor], tmp_path: Path) -> None:
    code = (
        "import sys, torch; sys.path.insert(0, sys.argv[1]); torch.manual_seed(123); torch.set_num_threads(2)\n"
        "from test_adapter_folder import Net, IMAGES, output\nfrom gpart import load_adapter\n"
        "model = Net(); torch.manual_seed(456); load_adapter(model, sys.argv[2]); torch.save(output(model), sys.argv[3])"
    )
    out = tmp_path / "out.pt"
    command = [sys.executable, "-c", code, str(Path(__file__).parent), str(trained[0]), str(out)]
    subprocess.run(command, check=True, timeout=100)
    assert torch.equal(torch.load(out), trained[1])


def test_sizes(trained: tuple[Path, Tensor]) -> None:
    numbers = 11 + 3 * 2 + 2
    buffers = 4 * 3 * 2 + 8
    assert 0 <= (trained[0] / TENSORS).stat().st_size - 4 * numbers - buffers < 1000
    assert (trained[0] / CONFIG).stat().st_size <= 2000 + 120 * 2
    names = set(load_file(trained[0] / TENSORS))
    stats = {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    assert names == {"gpart.default.theta", "head.weight", "head.bias"} | stats


def test_a_float32_adapter_loads_on_the_bfloat16_copy(trained: tuple[Path, Tensor]) -> None:
    model = Net().to(torch.bfloat16)
    adapter = load_adapter(model, trained[0])
    stored = load_file(trained[0] / TENSORS)
    assert torch.equal(adapter.theta, stored["gpart.default.theta"])
    assert torch.equal(model.head.weight, stored["head.weight"].bfloat16())


def test_saved_while_merged_is_the_same_file(trained: tuple[Path, Tensor], tmp_path: Path) -> None:
    model = Net()
    adapter = load_adapter(model, trained[0])
    adapter.merge()
    adapter.save(tmp_path / "merged")
    for name in (TENSORS, CONFIG):
        assert (tmp_path / "merged" / name).read_bytes() == (trained[0] / name).read_bytes()


def rewritten(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes the config and gives it a right checksum: a hostile or a foreign file, not a damaged one."""
    described = json.loads((folder / CONFIG).read_text())
    described.pop("sha256")
    change(described)
    digest = _content_hash(json.dumps(described))
    (folder / CONFIG).write_text(json.dumps({**described, "sha256": digest}))


def retensored(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load_file(folder / TENSORS)
    change(tensors)
    save_file(tensors, folder / TENSORS)
    digest = hashlib.sha256((folder / TENSORS).read_bytes()).hexdigest()
    rewritten(folder, lambda described: described.update(tensors_sha256=digest))


def _pickled(folder: Path) -> None:
    (folder / TENSORS).write_bytes(pickle.dumps({"gpart.default.theta": [0.0] * 11}))


def _pickled_with_checksum(folder: Path) -> None:
    _pickled(folder)
    digest = hashlib.sha256((folder / TENSORS).read_bytes()).hexdigest()
    rewritten(folder, lambda described: described.update(tensors_sha256=digest))


def _truncated(folder: Path) -> None:
    (folder / TENSORS).write_bytes((folder / TENSORS).read_bytes()[:-5])


THETA = "gpart.default.theta"
REFUSED: list[tuple[Any, Callable[[], nn.Module], str]] = [
    (None, lambda: Net(base=1), "trained on another base model: fingerprint"),
    (None, lambda: Net(order=("second", "first")), "joins the weights in another order: number 0 is .*first.*second"),
    (None, lambda: Net(width=5), r"only there .*4, 3, 3, 3.* only here .*5, 3, 3, 3"),
    (None, lambda: nn.Sequential(nn.Linear(2, 2)), "matches no module"),
    (lambda f: rewritten(f, lambda d: d.update(size=217)), Net, "D = 217, this model has D = 216"),
    (lambda f: rewritten(f, lambda d: d.update(scheme="gpart-v9")), Net, "'gpart-v9'.*'gpart-v1'"),
    (lambda f: rewritten(f, lambda d: d.update(name="a.b")), Net, "name consists of"),
    (lambda f: rewritten(f, lambda d: d.update(weights=7)), Net, "no list of adapted weights"),
    (lambda f: rewritten(f, lambda d: d.pop("base")), Net, "needs .*'base'"),
    (lambda f: rewritten(f, lambda d: d["config"].update(d=12)), Net, r"shape \[11\], this model needs \[12\]"),
    (lambda f: rewritten(f, lambda d: d["config"].update(d="11")), Net, "d must be a whole number"),
    (lambda f: rewritten(f, lambda d: d["config"].update(rank=8)), Net, r"unknown \['rank'\]"),
    (lambda f: rewritten(f, lambda d: d.update(config=[])), Net, "no settings"),
    (_truncated, Net, "was changed or truncated"),
    (_pickled, Net, "was changed or truncated"),
    (_pickled_with_checksum, Net, "is no safetensors file"),
    (lambda f: (f / TENSORS).write_bytes(b""), Net, "its 0 bytes"),
    (lambda f: (f / CONFIG).write_text(""), Net, "is no JSON"),
    (lambda f: (f / CONFIG).write_text("[" * 100_000), Net, "is no JSON"),
    (lambda f: (f / CONFIG).write_text("[1, 2]"), Net, "holds a list"),
    (lambda f: (f / CONFIG).write_text("{}"), Net, "was changed"),
    (lambda f: retensored(f, lambda t: t[THETA].__setitem__(3, float("nan"))), Net, "1 of the 11 numbers .* NaN"),
    (
        lambda f: retensored(f, lambda t: t["head.bias"].fill_(torch.inf)),
        Net,
        "2 of the 2 numbers of head.bias are NaN",
    ),
    (lambda f: retensored(f, lambda t: t.pop(THETA)), Net, rf"missing \['{THETA}'\]"),
    (lambda f: retensored(f, lambda t: t.pop("head.bias")), Net, r"missing \['head.bias'\]"),
    (lambda f: retensored(f, lambda t: t.update(more=torch.zeros(1))), Net, r"too many \['more'\]"),
    (lambda f: retensored(f, lambda t: t.update({"head.bias": torch.zeros(3)})), Net, r"head.bias has shape \[3\]"),
    (lambda f: retensored(f, lambda t: t.update({THETA: torch.zeros(11, dtype=torch.int64)})), Net, "torch.int64"),
]


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_what_does_not_fit_is_refused_and_the_model_kept(
    trained: tuple[Path, Tensor], case: int, state_of: Any
) -> None:
    change, build, said = REFUSED[case]
    if change is not None:
        change(trained[0])
    model = build()
    state = state_of(model)
    with pytest.raises(ValueError, match=said):
        load_adapter(model, trained[0])
    state.assert_kept()


def test_what_is_missing_is_named(tmp_path: Path, trained: tuple[Path, Tensor]) -> None:
    with pytest.raises(FileNotFoundError, match="nothing"):
        load_adapter(Net(), tmp_path / "nothing")
    (trained[0] / TENSORS).unlink()
    with pytest.raises(FileNotFoundError, match=TENSORS):
        load_adapter(Net(), trained[0])


def test_no_flipped_bit_loads(trained: tuple[Path, Tensor], state_of: Any) -> None:
    """Every bit of the config, and of the tensor file as many as make 1,000 with them or 200, at random places."""
    randomly, model = random.Random(0), Net()
    state = state_of(model)
    tried = 0
    for name in (CONFIG, TENSORS):
        path = trained[0] / name
        content = path.read_bytes()
        places = range(8 * len(content))
        chosen = places if name == CONFIG else randomly.sample(places, min(len(places), 400))
        for place in chosen:
            path.write_bytes(
                content[: place // 8] + bytes([content[place // 8] ^ 1 << place % 8]) + content[place // 8 + 1 :]
            )
            with pytest.raises(ValueError, match=r"adapter_(config|model)"):
                load_adapter(model, trained[0])
            tried += 1
        path.write_bytes(content)
    assert tried > 1000
    state.assert_kept()
    load_adapter(model, trained[0])


def test_the_base_check_can_be_overridden_with_a_warning(trained: tuple[Path, Tensor]) -> None:
    with pytest.warns(UserWarning, match="another base model"):
        load_adapter(Net(base=1), trained[0], check_base=False)


def test_an_attached_adapter_of_other_settings_is_refused(trained: tuple[Path, Tensor]) -> None:
    model = Net()
    attach(model, GPartConfig(d=11, target_modules=["first", "second"], modules_to_save=["head"], seed=7))
    with pytest.raises(ValueError, match="seed is 0 and 7"):
        load_adapter(model, trained[0])
    other = Net()
    attach(other, CONFIGURED, name="mine")
    load_adapter(other, trained[0])  # of another name, beside it
    assert list(get_adapters(other)) == ["mine", "default"]


def test_what_theta_alone_could_not_give_back_is_not_saved(tmp_path: Path) -> None:
    model = Net()
    adapter = attach(model, CONFIGURED)
    model.norm.requires_grad_(True)
    with pytest.raises(ValueError, match=r"norm\.weight"):
        adapter.save(tmp_path)
    model.norm.requires_grad_(False)
    with torch.no_grad():
        adapter.theta[2] = float("inf")
    with pytest.raises(ValueError, match="1 of the 11"):
        adapter.save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_reformatted_json_loads(trained: tuple[Path, Tensor]) -> None:
    described = json.loads((trained[0] / CONFIG).read_text())
    (trained[0] / CONFIG).write_text(json.dumps(described, indent=8, sort_keys=True))
    model = Net()
    load_adapter(model, trained[0])
    assert torch.equal(output(model), trained[1])


def test_a_copy_elsewhere_under_another_name(trained: tuple[Path, Tensor], tmp_path: Path) -> None:
    model = Net()
    adapter = attach(model, CONFIGURED, name="second")
    adapter.save(tmp_path / "b")
    shutil.move(tmp_path / "b", tmp_path / "c")
    again = Net()
    assert load_adapter(again, tmp_path / "c") is get_adapters(again)["second"]
