"""The same recipe on several machines, as far as one machine goes: two torchrun agents, Lightning's own flags, Slurm."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]


def environment(**more: str) -> dict[str, str]:
    """This process's, without what pytest or an earlier run has put there."""
    left_out = ("PYTEST", "SLURM", "MASTER_", "WORLD_SIZE", "RANK", "LOCAL_RANK", "NODE_RANK", "PL_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(left_out)}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **more}


def free_port() -> str:
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return str(one.getsockname()[1])


@pytest.fixture
def recipe(tiny_encoder: Path, glue_folder: Path) -> list[str]:
    """The words of a real recipe on small data: 72 rows in batches of 4, one epoch, on the CPU."""
    return [
        "fit", "--config=glue/rte", f"--model.model={tiny_encoder}", f"--data.model={tiny_encoder}", f"--data.path={glue_folder}",
        "--data.batch_size=4", "--data.max_length=16", "--trainer.accelerator=cpu", "--trainer.max_epochs=1", "--method.d=50",
        "--trainer.enable_progress_bar=false", "--trainer.logger=false", "--method.save_folder=adapter",
    ]  # fmt: skip


def run_both(commands: list[list[str]], folders: list[Path], environments: list[dict[str, str]]) -> list[str]:
    """Runs the processes of the machines side by side; what each printed."""
    started = [
        subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                         start_new_session=True)
        for command, folder, env in zip(commands, folders, environments, strict=True)
    ]  # fmt: skip
    try:
        printed = [process.communicate(timeout=150)[0] for process in started]
    finally:
        for process in started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait()
    for process, said in zip(started, printed, strict=True):
        if process.returncode:
            raise AssertionError(said[-3000:])
    return printed


@pytest.mark.slow
@pytest.mark.parametrize("how", ["torchrun", "lightning's own flags"])
def test_two_machines_share_the_rows_of_one_recipe(how: str, recipe: list[str], tmp_path: Path) -> None:
    """Each has a folder of its own, so that it shows who writes."""
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    words = [*recipe, "--trainer.num_nodes=2", "--trainer.devices=1", "--trainer.strategy=ddp"]
    port = free_port()
    if how == "torchrun":
        agent = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d",
                 f"--rdzv-endpoint=localhost:{port}", "--rdzv-id=7", "-m", "gpart.cli", *words]  # fmt: skip
        commands, environments = [[*agent]] * 2, [environment()] * 2
    else:
        commands = [[sys.executable, "-m", "gpart.cli", *words]] * 2
        environments = [environment(MASTER_ADDR="localhost", MASTER_PORT=port, NODE_RANK=str(node)) for node in (0, 1)]
    printed = run_both(commands, folders, environments)
    assert sum(said.count("│ D, their size") for said in printed) == 1
    wrote = [folder for folder in folders if (folder / "adapter").exists()]
    assert len(wrote) == 1
    (path,) = wrote[0].rglob("epoch=*.ckpt")
    assert not list((folders[1 - folders.index(wrote[0])]).rglob("*.ckpt"))
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["global_step"] == 72 // 4 // 2  # the rows are shared out
    assert sorted(checkpoint["callbacks"]["RandomStates"]["states"]) == [0, 1]


SCRIPT = """
import sys, time
from pathlib import Path
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset
from gpart.callbacks import GPartCallback

class Module(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.Tanh(), torch.nn.Linear(64, 2))
    def on_train_start(self):
        Path("starts.txt").open("a").write(f"{self.global_step}\\n")
    def training_step(self, batch, index):
        Path("step.txt").write_text(str(self.global_step))
        time.sleep(0.05)
        return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)

torch.set_num_threads(1)
data = TensorDataset(torch.randn(400, 8, generator=torch.Generator().manual_seed(1)), torch.arange(400) % 2)
trainer = Trainer(accelerator="cpu", max_steps=60, logger=False, enable_progress_bar=False, enable_checkpointing=False,
                  callbacks=[GPartCallback(d=10, target_modules=["0"], modules_to_save=["2"])])
module = Module()
trainer.fit(module, DataLoader(data, 4))
torch.save({"step": trainer.global_step, "theta": module.net.gpart.default.theta.detach()}, "end.pt")
"""


@pytest.mark.slow
def test_slurm_requeues_a_job_that_goes_on_by_itself(tmp_path: Path) -> None:
    """The signal that Slurm sends before the time limit; scontrol stands in for the cluster's."""
    tools = tmp_path / "bin"
    tools.mkdir()
    scontrol = tools / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/scontrol.txt\n')
    scontrol.chmod(scontrol.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "run.py").write_text(SCRIPT)
    slurm = {
        "SLURM_NTASKS": "1", "SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "tune", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0", "SLURM_JOB_NUM_NODES": "1", "SLURM_NODELIST": "localhost", "SLURM_NTASKS_PER_NODE": "1",
    }  # fmt: skip
    env = environment(**slurm, PATH=f"{tools}:{os.environ['PATH']}")
    command = [sys.executable, "run.py"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as job:
        try:
            wait_for(
                lambda: (tmp_path / "step.txt").exists() and int((tmp_path / "step.txt").read_text() or 0) >= 5, job
            )
            job.send_signal(signal.SIGUSR1)
            wait_for((tmp_path / "scontrol.txt").exists, job)
        finally:
            job.kill()
    assert (tmp_path / "scontrol.txt").read_text() == "requeue 4711\n"
    path = tmp_path / "hpc_ckpt_1.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    assert sorted(key for key in checkpoint["state_dict"] if " " not in key) == [
        "net.0.gpart.default.theta", "net.2.bias", "net.2.weight",
    ]  # fmt: skip
    assert path.stat().st_size < 30_000
    reached = checkpoint["global_step"]
    assert reached >= 5
    # The job's second life: the same command.
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [int(line) for line in (tmp_path / "starts.txt").read_text().split()] == [0, reached]
    end = torch.load(tmp_path / "end.pt", weights_only=True)
    assert end["step"] == 60
    assert not torch.equal(end["theta"], checkpoint["state_dict"]["net.0.gpart.default.theta"])


def wait_for(seen: Any, process: subprocess.Popen[str]) -> None:
    for _ in range(1200):
        if seen():
            return
        if process.poll() is not None:
            raise AssertionError(process.stdout.read()[-3000:])
        time.sleep(0.05)
    raise AssertionError("nothing was seen in a minute")


RAY = """
import sys
import ray
import torch
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

def work(config):
    from lightning.pytorch import LightningModule, Trainer
    from ray.train.lightning import RayDDPStrategy, RayLightningEnvironment, prepare_trainer
    from torch.utils.data import DataLoader, TensorDataset
    from gpart.callbacks import GPartCallback

    class Module(LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.net = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.Tanh(), torch.nn.Linear(64, 2))
        def training_step(self, batch, index):
            return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.5)

    torch.set_num_threads(1)
    data = TensorDataset(torch.randn(64, 8, generator=torch.Generator().manual_seed(1)), torch.arange(64) % 2)
    method = GPartCallback(d=10, target_modules=["0"], modules_to_save=["2"], save_folder=f"{config['out']}/adapter")
    trainer = Trainer(max_epochs=2, accelerator="cpu", devices="auto", strategy=RayDDPStrategy(), callbacks=[method],
                      plugins=[RayLightningEnvironment()], logger=False, enable_progress_bar=False, default_root_dir=config["out"])
    prepare_trainer(trainer).fit(Module(), DataLoader(data, 8))
    found = {"ranks": trainer.world_size, "steps": trainer.global_step, "theta": method.adapter.theta.detach()}
    torch.save(found, f"{config['out']}/{trainer.global_rank}.pt")

out = sys.argv[1]
ray.init(num_cpus=2, include_dashboard=False)
TorchTrainer(work, train_loop_config={"out": out}, scaling_config=ScalingConfig(num_workers=2),
             torch_config=TorchConfig(backend="gloo"), run_config=RunConfig(storage_path=f"{out}/storage")).fit()
"""


@pytest.mark.slow
def test_ray_trains_with_its_own_strategy(tmp_path: Path) -> None:
    """Ray Train, which the extra ray brings."""
    pytest.importorskip("ray.train")
    (tmp_path / "run.py").write_text(RAY)
    command = [sys.executable, "run.py", str(tmp_path)]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert first["ranks"] == second["ranks"] == 2
    assert first["steps"] == 64 // 8 // 2 * 2
    assert torch.equal(first["theta"], second["theta"])
    assert first["theta"].count_nonzero() == 10
    assert (tmp_path / "adapter").is_dir()
