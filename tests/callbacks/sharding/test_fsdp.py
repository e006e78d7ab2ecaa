"""FSDP2 and FSDP 1 with two processes on the CPU: as one process, theta whole, the base in parts, one file for all.

Run as a script this file is one of the processes: ``test_fsdp.py FOLDER KIND``, where KIND is ``fsdp1`` or ``fsdp2``.
"""

from __future__ import annotations

import json
import os
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from joined_batch import LENGTH, Classifier, bits, loader
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, WeightAveraging
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy, wrap
from torch.distributed.tensor import DTensor

from gpart import GPartConfig, attach, load_adapter
from gpart.callbacks import GPartCallback, LinearProbe, load_from_checkpoint
from gpart.injection.names import plain_name
from gpart.serialization.folder import read_folder

SETTINGS: dict[str, Any] = {"d": 10, "target_modules": ["0", "2"], "modules_to_save": ["4"]}
ROWS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulation": {"accumulate_grad_batches": 2},
    "clipping": {"gradient_clip_val": 0.05},
    "clipping values": {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
    "forward": {"weights": "forward"},
    "computed": {"indices": "computed"},
    "dropout": {"dropout": 0.3},
    "bf16 base": {"dtype": "bfloat16"},
    "foreach": {"foreach": True},
}
WRAPPINGS: dict[str, dict[str, Any]] = {
    "no policy": {"options": lambda net: {"auto_wrap_policy": None}},
    "by size": {"options": lambda net: {"auto_wrap_policy": partial(size_based_auto_wrap_policy, min_num_params=100)}},
    "gradients only": {"options": lambda net: {"sharding_strategy": "SHARD_GRAD_OP"}},
    "ignored parameter": {"options": lambda net: {"ignored_states": [net[2].bias]}},
    "ignored module": {"options": lambda net: {"ignored_modules": [net[2]]}},
    "checkpointing": {"options": lambda net: {"activation_checkpointing_policy": {Layer}}},
    "own wrap": {"options": lambda net: {"auto_wrap_policy": None}, "wrapped": "02"},
}
"""Ways to wrap by FSDP 1; options of the strategy from the network."""
RANKS = {"one": 1, "fsdp1": 2, "fsdp2": 2}
SKIPPED = [("fsdp1", "clipping")]  # Lightning refuses to clip by the norm there
TRAINED = {"4.weight": [2, 16], "4.bias": [2], "0.gpart.default.theta": [10]}
SHARDED = {
    "fsdp2": {
        "0.bias": [8], "0.weight": [8, 8],
        "2.bias": [8], "2.weight": [8, 16],
        "4.weight": [1, 16], "4.bias": [1], "0.gpart.default.theta": [10],
    },
    # 16 + 128 numbers and 16 + 256, the flat vector of each layer halved
    "fsdp1": {
        "0.bias": [[0], [16]], "0.weight": [[72], [56]],
        "2.bias": [[0], [16]], "2.weight": [[136], [120]], **TRAINED,
    },
}  # fmt: skip


class OnCPU(FSDPStrategy):
    """Lightning asks for a GPU where the strategy is FSDPStrategy itself, and then for the device by its index."""

    @classmethod
    def allow(cls) -> None:
        """Lets torch shard on the CPU, which it does where it is named."""
        own = FullyShardedDataParallel.__init__

        def init(self: FullyShardedDataParallel, *given: Any, **more: Any) -> None:
            own(self, *given, **{**more, "device_id": torch.device("cpu")})

        FullyShardedDataParallel.__init__ = init


class Layer(nn.Linear):
    """Counts its forward passes in a buffer, which a checkpoint must hold too."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.register_buffer("seen", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen += 1
        return super().forward(x)


def build(dtype: str = "float32", device: str = "cpu") -> nn.Sequential:
    torch.manual_seed(0)
    with torch.device(device):
        net = nn.Sequential(Layer(8, 16), nn.Tanh(), Layer(16, 16), nn.Tanh(), nn.Linear(16, 2))
    return net.to(getattr(torch, dtype))


class Module(Classifier):
    """Sharded by its own configure_model, as Lightning asks for; a plain module where there is no mesh."""

    def __init__(self, dtype: str = "float32", foreach: bool | None = None, attach_in: str = "",
                 head_whole: bool = False, wrapped: str = "", device: str = "cpu") -> None:  # fmt: skip
        super().__init__()
        self.wrapped = wrapped
        self.head_whole = head_whole
        self.dtype_name, self.foreach, self.attach_in = dtype, foreach, attach_in
        self.net: nn.Sequential | None = None if attach_in else build(dtype, device)

    def configure_model(self) -> None:
        if self.net is None:
            self.net = build(self.dtype_name)
        elif isinstance(self.net[0], (FSDPModule, FullyShardedDataParallel)):
            return
        ignored = set()
        if self.attach_in == "configure_model":
            ignored = {attach(self.net, GPartConfig(**SETTINGS)).theta}
        if self.wrapped:
            for name in self.wrapped:
                self.net[int(name)] = wrap(self.net[int(name)])
        if self.device_mesh is None:
            return
        mesh = self.device_mesh["data_parallel"]
        for layer in (self.net[0], self.net[2]):
            fully_shard(layer, mesh=mesh, ignored_params=ignored)
        if not self.head_whole:
            fully_shard(self.net, mesh=mesh, ignored_params=ignored)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.to(getattr(torch, self.dtype_name)))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        trained = [value for value in self.parameters() if value.requires_grad]
        return torch.optim.AdamW(trained, lr=0.02, foreach=self.foreach)


class Watch(Callback):
    """Theta's bits on this rank after every step, and what of the base lies here."""

    def __init__(self) -> None:
        self.thetas: list[str] = []
        self.local: dict[str, list[int]] = {}

    def on_train_batch_end(self, trainer: Trainer, module: Any, *given: Any) -> None:
        self.thetas.append(bits(module.net.gpart.default.values()))
        self.local = {plain_name(name): list((value.to_local() if isinstance(value, DTensor) else value).shape)
                      for name, value in module.net.named_parameters()}  # fmt: skip


def sharding(kind: str, ranks: int, **more: Any) -> Strategy | str:
    if kind == "fsdp1":
        return OnCPU(**{"auto_wrap_policy": {Layer}, **more})
    return ModelParallelStrategy(data_parallel_size=ranks, tensor_parallel_size=1) if kind == "fsdp2" else "auto"


def trainer(out: Path, ranks: int, *callbacks: Any, strategy: Any = "auto", **more: Any) -> Trainer:
    quiet = dict.fromkeys(["logger", "enable_progress_bar", "enable_model_summary"], False)
    return Trainer(accelerator="cpu", devices=ranks, strategy=strategy, use_distributed_sampler=False,
                   callbacks=list(callbacks), default_root_dir=out, **quiet, **{"max_epochs": 2, **more})  # fmt: skip


def plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return [str(value.dtype), value.float().tolist()]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items() if " " not in str(key)}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def run(out: Path, name: str, kind: str, rank: int, path: Path | None = None, dtype: str = "float32",
        foreach: bool | None = None, weights: str = "auto", indices: str = "auto", dropout: float = 0.0,
        attach_in: str = "", late: bool = False, wrapped: str = "", strategy: Any = None, options: Any = None,
        **more: Any) -> dict[str, Any]:  # fmt: skip
    """Fits, evaluates, and says what there is then."""
    ranks = RANKS[kind]
    module, watch = Module(dtype, foreach, attach_in or ("callback" if late else ""), wrapped=wrapped), Watch()
    if kind == "fsdp1" and module.net is not None:
        module.net[4].weight.data += rank  # what each rank has drawn by itself: rank 0's is taken
    method = GPartCallback(**SETTINGS, weights=weights, indices=indices, dropout=dropout,
                           save_folder=str(out / f"{name}-{kind}-adapter"))  # fmt: skip
    best = {"monitor": "step", "mode": "max"} if name == "plain" else {}  # its folder is written from the best file
    keeper = ModelCheckpoint(out / f"{name}-{kind}", "{epoch}", save_top_k=-1, enable_version_counter=False, **best)
    fitting = trainer(
        out,
        ranks,
        method,
        watch,
        keeper,
        strategy=strategy or sharding(kind, ranks, **(options(module.net) if options else {})),
        **more,
    )
    fitting.fit(module, loader(ranks, rank), loader(ranks, rank), ckpt_path=path)
    validated = fitting.validate(module, loader(ranks, rank), verbose=False)
    head = module.net[4].weight.detach()
    trained_head = (head.full_tensor() if isinstance(head, DTensor) else head).float().tolist()
    theta, seen = method.adapter.values.tolist(), [int(module.net[index].seen) for index in (0, 2)]
    # Another checkpoint than the last, into a module that has just run forward.
    first = out / f"{name}-{kind}" / "epoch=0.ckpt"
    tested = fitting.test(module, loader(ranks, rank), verbose=False, ckpt_path=first if first.exists() else path)
    predicted = torch.cat(fitting.predict(module, loader(ranks, rank)))
    return {
        "theta": theta,
        "thetas": watch.thetas,
        "head": trained_head,
        "seen": [*seen, *(int(module.net[index].seen) for index in (0, 2))],
        "losses": [validated[0]["loss"], tested[0]["loss"]],
        "predicted": predicted.float().tolist(),
        "local": watch.local,
        "steps": fitting.global_step,
        "checkpoint": keeper.best_model_path,
    }


def twice(out: Path, kind: str, rank: int) -> dict[str, Any]:
    """A second trainer goes on with a module that the first has left after a validation."""
    ranks, module = RANKS[kind], Module()
    for _ in range(2):
        watch, method = Watch(), GPartCallback(**SETTINGS)
        fitting = trainer(out, ranks, method, watch, strategy=sharding(kind, ranks), enable_checkpointing=False)
        fitting.fit(module, loader(ranks, rank), loader(ranks, rank))
    losses = fitting.validate(module, loader(ranks, rank), verbose=False)
    head = module.net[4].weight.detach()
    found = {
        "theta": method.adapter.values.tolist(),
        "thetas": watch.thetas,
        "head": (head.full_tensor() if isinstance(head, DTensor) else head).tolist(),
        "losses": losses[0]["loss"],
    }
    if kind != "one":
        found["detach"] = refused("detach", out, method.adapter.detach)["error"]
    return found


def refused(name: str, out: Path, call: Any) -> dict[str, str]:
    try:
        call()
    except ValueError as error:
        return {"error": str(error)}
    return {"error": f"{name} was not refused"}


def main(out: Path, kind: str) -> None:
    torch.set_num_threads(1)
    if kind == "fsdp1":
        OnCPU.allow()
    ranks, rank = RANKS[kind], int(os.environ.get("RANK", "0"))
    rows = {name: row for name, row in ROWS.items() if (kind, name) not in SKIPPED}
    if kind == "fsdp1":  # whose 32-true makes float32 of every weight before its layer runs
        rows["bf16 base"] = {**rows["bf16 base"], "precision": "bf16-true"}
    found: dict[str, Any] = {name: run(out, name, kind, rank, **row) for name, row in rows.items()}
    found["twice"] = twice(out, kind, rank)
    if kind != "one":
        found["attached by the user"] = run(out, "user", kind, rank, attach_in="configure_model")
        # One process's file goes on in two, and two processes' in two.
        for name, start in (("one", "plain-one"), ("two", f"plain-{kind}")):
            found[f"resumed from {name}"] = run(out, f"resumed-{name}", kind, rank, path=out / start / "epoch=0.ckpt")
        found["kept"] = refused("kept", out, lambda: run(out, "kept", kind, rank, weights="kept"))
        probe = trainer(out, ranks, LinearProbe(modules_to_save=["4"]), strategy=sharding(kind, ranks))
        found["another method"] = refused("probe", out, lambda: probe.fit(Module(), loader(ranks, rank)))
        average = trainer(out, ranks, GPartCallback(**SETTINGS), WeightAveraging(), strategy=sharding(kind, ranks))
        found["average"] = refused("average", out, lambda: average.fit(Module(), loader(ranks, rank)))
    if kind == "fsdp2":
        tensor = ModelParallelStrategy(tensor_parallel_size=2, data_parallel_size=1)
        found["too late"] = refused("late", out, lambda: run(out, "late", kind, rank, late=True))
        found["tensor parallel"] = refused("tp", out, lambda: run(out, "tp", kind, rank, strategy=tensor))
        whole = trainer(out, ranks, GPartCallback(**SETTINGS), strategy=sharding(kind, ranks))
        found["head left whole"] = refused(
            "whole", out, lambda: whole.fit(Module(head_whole=True), loader(ranks, rank))
        )
    if kind == "fsdp1":
        for name, row in WRAPPINGS.items():
            found[name] = run(out, name, kind, rank, **row)
        found["wrapped too late"] = refused("late", out, lambda: run(out, "late", kind, rank, late=True, wrapped="02"))
        found["head wrapped"] = refused(
            "head", out, lambda: run(out, "head", kind, rank, attach_in="configure_model", wrapped="04")
        )
        found["flat weights"] = refused(
            "flat", out, lambda: run(out, "flat", kind, rank, options=lambda net: {"use_orig_params": False})
        )
        meta = trainer(out, ranks, GPartCallback(**SETTINGS), strategy=OnCPU())
        found["meta"] = refused("meta", out, lambda: meta.fit(Module(device="meta"), loader(ranks, rank)))
    (out / f"{kind}-{rank}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fsdp")


@pytest.fixture(scope="module")
def one(out: Path) -> dict[str, Any]:
    threads = torch.get_num_threads()
    main(out, "one")
    torch.set_num_threads(threads)
    return json.loads((out / "one-0.json").read_text())


@pytest.fixture(scope="module", params=[pytest.param(kind, marks=pytest.mark.slow) for kind in ("fsdp2", "fsdp1")])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def two(kind: str, out: Path, one: dict[str, Any], torchrun: Any) -> list[dict[str, Any]]:
    torchrun(__file__, 2, str(out), kind)
    return [json.loads((out / f"{kind}-{rank}.json").read_text()) for rank in range(2)]


def assert_near(ranks: list[dict[str, Any]], single: dict[str, Any], near: float) -> None:
    for rank in ranks:
        assert rank["thetas"] == ranks[0]["thetas"]
        assert rank["steps"] == single["steps"]
        assert rank["seen"] == single["seen"]
        for key in ("theta", "head", "losses"):
            assert rank[key] == ranks[0][key]
            assert torch.allclose(torch.tensor(rank[key]), torch.tensor(single[key]), rtol=0, atol=near), key
    dealt = torch.stack([torch.tensor(rank["predicted"]) for rank in ranks], 1).reshape(LENGTH, 2)
    assert torch.allclose(dealt, torch.tensor(single["predicted"]), rtol=0, atol=10 * near)


@pytest.mark.parametrize("name", [name for name in ROWS if name != "dropout"])
def test_it_trains_as_one_process(name: str, kind: str, two: list[dict[str, Any]], one: dict[str, Any]) -> None:
    if (kind, name) in SKIPPED:
        pytest.skip("Lightning refuses to clip by the norm under FSDP 1")
    # A bfloat16 weight has a spacing of 2^-8 of its size, and the ranks' gradients are rounded before they are summed.
    assert_near([rank[name] for rank in two], one[name], 2e-2 if name == "bf16 base" else 2e-6)


@pytest.mark.parametrize("name", WRAPPINGS)
def test_it_is_the_same_however_fsdp_1_wraps(
    name: str, kind: str, two: list[dict[str, Any]], one: dict[str, Any]
) -> None:
    if kind != "fsdp1":
        pytest.skip("of FSDP 1")
    ranks, single = [rank[name] for rank in two], dict(one["plain"])
    if name == "checkpointing":
        single["seen"] = ranks[0]["seen"]  # the second forward pass counts too
    assert_near(ranks, single, 2e-6)


@pytest.mark.parametrize("name", ["dropout", "attached by the user"])
def test_theta_is_the_same_on_both(name: str, two: list[dict[str, Any]], one: dict[str, Any]) -> None:
    first, second = (rank[name] for rank in two)
    assert first["thetas"] == second["thetas"]
    assert len(set(first["thetas"])) == 12
    if name != "dropout":
        assert_near([first, second], one["plain"], 2e-6)


def test_the_base_is_sharded_and_theta_is_whole(kind: str, two: list[dict[str, Any]]) -> None:
    for number, rank in enumerate(two):
        expected = {
            name: shape[number] if isinstance(shape[0], list) else shape for name, shape in SHARDED[kind].items()
        }
        assert rank["plain"]["local"] == expected


def test_another_trainer_goes_on(kind: str, two: list[dict[str, Any]], one: dict[str, Any]) -> None:
    first, second = (rank["twice"] for rank in two)
    assert first["thetas"] == second["thetas"]
    assert len(set(first["thetas"])) == 12
    for key in ("theta", "head", "losses"):
        assert torch.allclose(torch.tensor(first[key]), torch.tensor(one["twice"][key]), rtol=0, atol=4e-6)
    if kind != "one":
        assert "is sharded: load its file into a whole model, and detach there" in first["detach"]


@pytest.mark.parametrize("name", ["plain", "bf16 base"])
def test_a_checkpoint_is_the_one_that_one_process_writes(
    name: str, kind: str, out: Path, two: list[dict[str, Any]]
) -> None:
    """Whole tensors, of theta and the head, and their optimizer states: not rank 0's rows."""
    written = [torch.load(out / f"{name}-{by}" / "epoch=1.ckpt", weights_only=True) for by in ("one", kind)]
    shapes = {f"net.{key}": shape for key, shape in TRAINED.items()}
    for checkpoint in written:
        state = {key: value for key, value in checkpoint["state_dict"].items() if " " not in key}
        assert {key: list(value.shape) for key, value in state.items()} == {
            **shapes,
            "net.0.seen": [],
            "net.2.seen": [],
        }
        assert state["net.0.seen"] == 12
        moments = checkpoint["optimizer_states"][0]["state"].values()
        assert sorted(list(state["exp_avg"].shape) for state in moments) == [[2], [2, 16], [10]]
        for value in [*checkpoint["state_dict"].values(), *(state["exp_avg"] for state in moments)]:
            assert type(value) is Tensor
    assert list(written[0]["state_dict"]) == list(written[1]["state_dict"])
    assert written[0]["gpart"]["manifest"] == written[1]["gpart"]["manifest"]
    assert plain(written[1]["state_dict"])["net.4.weight"][1] == two[0][name]["head"]
    near = 2e-2 if name == "bf16 base" else 2e-6
    for key in shapes:
        assert torch.allclose(
            written[0]["state_dict"][key].float(), written[1]["state_dict"][key].float(), rtol=0, atol=near
        )


def test_files_of_two_load_in_one(kind: str, out: Path, two: list[dict[str, Any]]) -> None:
    expected = two[0]["plain"]
    for source in (out / f"plain-{kind}" / "epoch=1.ckpt", out / f"plain-{kind}-adapter"):
        net = build()
        assert load_adapter(net, source).theta.tolist() == expected["theta"]
        assert net[4].weight.tolist() == expected["head"]
        assert net[2].seen == 12
    assert read_folder(out / f"plain-{kind}-adapter")[0].about.score["monitor"] == "step"
    assert read_folder(out / f"dropout-{kind}-adapter")[0].about.score == {"step": expected["steps"]}
    module = load_from_checkpoint(Module, out / f"plain-{kind}" / "epoch=1.ckpt")
    assert module.net.gpart.default.theta.tolist() == expected["theta"]
    # and goes on: half of the run by two, half by one.
    method, further = GPartCallback(**SETTINGS), Module()
    trainer(out, 1, method, enable_checkpointing=False).fit(
        further, loader(1, 0), loader(1, 0), ckpt_path=out / f"plain-{kind}" / "epoch=0.ckpt"
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
    ("name", "of", "said"),
    [
        ("kept", "12", "weights='kept'.*'recomputed'"),
        ("another method", "12", "LinearProbe under (ModelParallelStrategy|OnCPU) is not supported"),
        ("average", "12", "WeightAveraging is not supported under (ModelParallelStrategy|OnCPU)"),
        ("too late", "2", "are sharded already.*network in __init__.*or call gpart.attach in configure_model before"),
        ("tensor parallel", "2", "tensor_parallel_size=2.*data_parallel_size=2 and tensor_parallel_size=1"),
        ("head left whole", "2", r"'net.4.weight', 'net.4.bias'.* are trained and not sharded.* 2 ranks"),
        (
            "wrapped too late",
            "1",
            r"\['0', '2'\] of Sequential are wrapped by FSDP already.*__init__.*auto_wrap_policy",
        ),
        ("head wrapped", "1", r"'net.4.weight', 'net.4.bias'\] are trained and were sharded.*ignored_states"),
        ("flat weights", "1", "use_orig_params=False"),
        ("meta", "1", "'net.0.*meta device.*FSDP2"),
    ],
)
def test_what_cannot_work_is_refused(name: str, of: str, said: str, kind: str, two: list[dict[str, Any]]) -> None:
    if kind[-1] not in of:
        pytest.skip(f"not of {kind}")
    for rank in two:
        assert re.search(said, rank[name]["error"]), rank[name]["error"]


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
