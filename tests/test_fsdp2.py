"""FSDP2 with two processes on the CPU: as one process, theta whole, the base in parts, and one file for any number of ranks.

Run as a script this file is one of the processes: ``test_fsdp2.py FOLDER``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from gpart import GPartConfig, attach, load_adapter
from gpart.callbacks import GPartCallback, LinearProbe, load_from_checkpoint

SETTINGS: dict[str, Any] = {"d": 10, "target_modules": ["0", "2"], "modules_to_save": ["4"]}
BATCH, LENGTH = 8, 48
ROWS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulation": {"accumulate_grad_batches": 2},
    "clipping": {"gradient_clip_val": 0.05},
    "forward": {"weights": "forward"},
    "computed": {"indices": "computed"},
    "dropout": {"dropout": 0.3},
    "bf16 base": {"dtype": "bfloat16"},
    "foreach": {"foreach": True},
}


def build(dtype: str = "float32") -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 2))
    return net.to(getattr(torch, dtype))


class Module(LightningModule):
    """Sharded by its own configure_model, as Lightning asks for; a plain module where there is no mesh."""

    def __init__(self, dtype: str = "float32", foreach: bool | None = None, attach_in: str = "",
                 head_whole: bool = False) -> None:  # fmt: skip
        super().__init__()
        self.head_whole = head_whole
        self.dtype_name, self.foreach, self.attach_in = dtype, foreach, attach_in
        self.net: nn.Sequential | None = None if attach_in else build(dtype)

    def configure_model(self) -> None:
        if self.net is None:
            self.net = build(self.dtype_name)
        elif isinstance(self.net, FSDPModule) or isinstance(self.net[0], FSDPModule):
            return
        ignored = set()
        if self.attach_in == "configure_model":
            ignored = {attach(self.net, GPartConfig(**SETTINGS)).theta}
        if self.device_mesh is None:
            return
        mesh = self.device_mesh["data_parallel"]
        for layer in (self.net[0], self.net[2]):
            fully_shard(layer, mesh=mesh, ignored_params=ignored)
        if not self.head_whole:
            fully_shard(self.net, mesh=mesh, ignored_params=ignored)

    def loss(self, batch: list[Tensor]) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]).float(), batch[1])

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.to(getattr(torch, self.dtype_name)))

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return self.loss(batch)

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        self.log("loss", self.loss(batch), sync_dist=True, batch_size=len(batch[0]))

    test_step = validation_step

    def predict_step(self, batch: list[Tensor], index: int) -> Tensor:
        return self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        trained = [value for value in self.parameters() if value.requires_grad]
        return torch.optim.AdamW(trained, lr=0.02, foreach=self.foreach)


class Watch(Callback):
    """Theta's bits on this rank after every step, and what of the base lies here."""

    def __init__(self) -> None:
        self.thetas: list[str] = []
        self.local: dict[str, list[int]] = {}

    def on_train_batch_end(self, trainer: Trainer, module: Any, *given: Any) -> None:
        theta = module.net.gpart.default.values().detach()
        self.thetas.append(hashlib.sha256(theta.numpy().tobytes()).hexdigest()[:16])
        self.local = {name: list((value.to_local() if isinstance(value, DTensor) else value).shape)
                      for name, value in module.net.named_parameters()}  # fmt: skip


def trainer(out: Path, ranks: int, *callbacks: Any, strategy: Any = None, **more: Any) -> Trainer:
    quiet = dict.fromkeys(["logger", "enable_progress_bar", "enable_model_summary"], False)
    if strategy is None:
        strategy = ModelParallelStrategy(data_parallel_size=ranks, tensor_parallel_size=1) if ranks > 1 else "auto"
    return Trainer(accelerator="cpu", devices=ranks, strategy=strategy, use_distributed_sampler=False,
                   callbacks=list(callbacks), default_root_dir=out, **quiet, **{"max_epochs": 2, **more})  # fmt: skip


def loader(ranks: int, rank: int) -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    data = TensorDataset(
        torch.randn(LENGTH, 8, generator=generator), torch.randint(0, 2, (LENGTH,), generator=generator)
    )
    return DataLoader(data, BATCH // ranks, sampler=DistributedSampler(data, ranks, rank, shuffle=False))


def plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return [str(value.dtype), value.float().tolist()]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items() if " " not in str(key)}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def run(out: Path, name: str, ranks: int, rank: int, path: Path | None = None, dtype: str = "float32",
        foreach: bool | None = None, weights: str = "auto", indices: str = "auto", dropout: float = 0.0,
        attach_in: str = "", late: bool = False, **more: Any) -> dict[str, Any]:  # fmt: skip
    """Fits, evaluates, and says what there is then."""
    module, watch = Module(dtype, foreach, attach_in or ("callback" if late else "")), Watch()
    method = GPartCallback(**SETTINGS, weights=weights, indices=indices, dropout=dropout,
                           save_folder=str(out / f"{name}-{ranks}-adapter"))  # fmt: skip
    keeper = ModelCheckpoint(out / f"{name}-{ranks}", "{epoch}", save_top_k=-1, enable_version_counter=False)
    fitting = trainer(out, ranks, method, watch, keeper, **more)
    fitting.fit(module, loader(ranks, rank), loader(ranks, rank), ckpt_path=path)
    validated = fitting.validate(module, loader(ranks, rank), verbose=False)
    head = module.net[4].weight.detach()
    trained_head = (head.full_tensor() if isinstance(head, DTensor) else head).float().tolist()
    theta = method.adapter.values.tolist()
    # Another checkpoint than the last, into a module that has just run forward.
    first = out / f"{name}-{ranks}" / "epoch=0.ckpt"
    tested = fitting.test(module, loader(ranks, rank), verbose=False, ckpt_path=first if first.exists() else path)
    predicted = torch.cat(fitting.predict(module, loader(ranks, rank)))
    return {
        "theta": theta,
        "thetas": watch.thetas,
        "head": trained_head,
        "losses": [validated[0]["loss"], tested[0]["loss"]],
        "predicted": predicted.float().tolist(),
        "local": watch.local,
        "steps": fitting.global_step,
        "checkpoint": keeper.best_model_path,
    }


def refused(name: str, out: Path, call: Any) -> dict[str, str]:
    try:
        call()
    except ValueError as error:
        return {"error": str(error)}
    return {"error": f"{name} was not refused"}


def main(out: Path) -> None:
    torch.set_num_threads(1)
    ranks, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    found: dict[str, Any] = {name: run(out, name, ranks, rank, **row) for name, row in ROWS.items()}
    if ranks > 1:
        found["attached by the user"] = run(out, "user", ranks, rank, attach_in="configure_model")
        # One process's file goes on in two, and two processes' in two.
        for name in ("one", "two"):
            start = out / ("plain-1" if name == "one" else "plain-2") / "epoch=0.ckpt"
            found[f"resumed from {name}"] = run(out, f"resumed-{name}", ranks, rank, path=start)
        tensor = ModelParallelStrategy(tensor_parallel_size=2, data_parallel_size=1)
        found["too late"] = refused("late", out, lambda: run(out, "late", ranks, rank, late=True))
        found["tensor parallel"] = refused("tp", out, lambda: run(out, "tp", ranks, rank, strategy=tensor))
        found["kept"] = refused("kept", out, lambda: run(out, "kept", ranks, rank, weights="kept"))
        whole = trainer(out, ranks, GPartCallback(**SETTINGS))
        found["head left whole"] = refused(
            "whole", out, lambda: whole.fit(Module(head_whole=True), loader(ranks, rank))
        )
        probe = trainer(out, ranks, LinearProbe(modules_to_save=["4"]))
        found["another method"] = refused("probe", out, lambda: probe.fit(Module(), loader(ranks, rank)))
    (out / f"{ranks}-{rank}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fsdp")


@pytest.fixture(scope="module")
def one(out: Path) -> dict[str, Any]:
    threads = torch.get_num_threads()
    main(out)
    torch.set_num_threads(threads)
    return json.loads((out / "1-0.json").read_text())


@pytest.fixture(scope="module")
def two(out: Path, one: dict[str, Any], torchrun: Any) -> list[dict[str, Any]]:
    torchrun(__file__, 2, str(out))
    return [json.loads((out / f"2-{rank}.json").read_text()) for rank in range(2)]


def assert_near(ranks: list[dict[str, Any]], single: dict[str, Any], near: float) -> None:
    for rank in ranks:
        assert rank["thetas"] == ranks[0]["thetas"]
        assert rank["steps"] == single["steps"]
        for key in ("theta", "head", "losses"):
            assert rank[key] == ranks[0][key]
            assert torch.allclose(torch.tensor(rank[key]), torch.tensor(single[key]), rtol=0, atol=near), key
    dealt = torch.stack([torch.tensor(rank["predicted"]) for rank in ranks], 1).reshape(LENGTH, 2)
    assert torch.allclose(dealt, torch.tensor(single["predicted"]), rtol=0, atol=10 * near)


@pytest.mark.parametrize("name", [name for name in ROWS if name != "dropout"])
def test_it_trains_as_one_process(name: str, two: list[dict[str, Any]], one: dict[str, Any]) -> None:
    # A bfloat16 weight has a spacing of 2^-8 of its size, and the ranks' gradients are rounded before they are summed.
    assert_near([rank[name] for rank in two], one[name], 2e-2 if name == "bf16 base" else 2e-6)


@pytest.mark.parametrize("name", ["dropout", "attached by the user"])
def test_theta_is_the_same_on_both(name: str, two: list[dict[str, Any]], one: dict[str, Any]) -> None:
    first, second = (rank[name] for rank in two)
    assert first["thetas"] == second["thetas"]
    assert len(set(first["thetas"])) == 12
    if name != "dropout":
        assert_near([first, second], one["plain"], 2e-6)


def test_the_base_is_sharded_and_theta_is_whole(two: list[dict[str, Any]]) -> None:
    for rank in two:
        assert rank["plain"]["local"] == {
            "0.bias": [8], "0.parametrizations.weight.original": [8, 8], "2.bias": [8],
            "2.parametrizations.weight.original": [8, 16], "4.weight": [1, 16], "4.bias": [1], "gpart.default.theta": [10],
        }  # fmt: skip


@pytest.mark.parametrize("name", ["plain", "bf16 base"])
def test_a_checkpoint_is_the_one_that_one_process_writes(name: str, out: Path, two: list[dict[str, Any]]) -> None:
    """Whole tensors, of theta and the head, and their optimizer states: not rank 0's rows."""
    written = [torch.load(out / f"{name}-{ranks}" / "epoch=1.ckpt", weights_only=True) for ranks in (1, 2)]
    keys = {"net.4.weight", "net.4.bias", "net.gpart.default.theta"}
    for checkpoint in written:
        assert {key for key in checkpoint["state_dict"] if " " not in key} == keys
        shapes = {key: list(value.shape) for key, value in checkpoint["state_dict"].items() if key in keys}
        assert shapes == {"net.4.weight": [2, 16], "net.4.bias": [2], "net.gpart.default.theta": [10]}
        moments = checkpoint["optimizer_states"][0]["state"].values()
        assert sorted(list(state["exp_avg"].shape) for state in moments) == [[2], [2, 16], [10]]
        for value in [*checkpoint["state_dict"].values(), *(state["exp_avg"] for state in moments)]:
            assert type(value) is Tensor
    assert written[0]["gpart"]["manifest"] == written[1]["gpart"]["manifest"]
    assert plain(written[1]["state_dict"])["net.4.weight"][1] == two[0][name]["head"]
    near = 2e-2 if name == "bf16 base" else 2e-6
    for key in keys:
        assert torch.allclose(
            written[0]["state_dict"][key].float(), written[1]["state_dict"][key].float(), rtol=0, atol=near
        )


def test_files_of_two_load_in_one(out: Path, two: list[dict[str, Any]]) -> None:
    expected = two[0]["plain"]
    for source in (out / "plain-2" / "epoch=1.ckpt", out / "plain-2-adapter"):
        net = build()
        assert load_adapter(net, source).theta.tolist() == expected["theta"]
        assert net[4].weight.tolist() == expected["head"]
    module = load_from_checkpoint(Module, out / "plain-2" / "epoch=1.ckpt")
    assert module.net.gpart.default.theta.tolist() == expected["theta"]
    # and goes on: half of the run by two, half by one.
    method, further = GPartCallback(**SETTINGS), Module()
    trainer(out, 1, method, enable_checkpointing=False).fit(
        further, loader(1, 0), loader(1, 0), ckpt_path=out / "plain-2" / "epoch=0.ckpt"
    )
    assert torch.allclose(method.adapter.theta, torch.tensor(expected["theta"]), rtol=0, atol=2e-6)


def test_files_of_one_and_of_two_go_on_in_two(two: list[dict[str, Any]]) -> None:
    for rank in two:
        # From its own file to the bit, the moments of the sharded head among it.
        for key in ("theta", "head"):
            assert rank["resumed from two"][key] == rank["plain"][key]
            assert torch.allclose(
                torch.tensor(rank["resumed from one"][key]), torch.tensor(rank["plain"][key]), rtol=0, atol=2e-6
            )
        assert rank["resumed from one"]["steps"] == 12
        assert rank["resumed from two"]["thetas"] == rank["plain"]["thetas"][6:]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "too late",
            "are sharded already.*build the network in __init__.*or call gpart.attach in configure_model before",
        ),
        ("tensor parallel", "tensor_parallel_size=2.*data_parallel_size=2 and tensor_parallel_size=1"),
        ("head left whole", r"'net.4.weight', 'net.4.bias'.* are trained and not sharded.* 2 ranks"),
        ("kept", "weights='kept'.*'recomputed'"),
        ("another method", "LinearProbe.*ModelParallelStrategy"),
    ],
)
def test_what_cannot_work_is_refused(name: str, said: str, two: list[dict[str, Any]]) -> None:
    for rank in two:
        assert re.search(said, rank[name]["error"]), rank[name]["error"]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
