"""One rank of a two-process run, started by torch.distributed.run; rank 0 writes what test_ddp.py compares.

DDP checks the hook's annotations, so they must not be strings here.

Usage: ddp_worker.py OUT DEVICES
"""

import json
import sys
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from gpart.callbacks import GPartCallback

STEPS, BATCH = 5, 8


class Module(LightningModule):
    """Two layers and the loss of a batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))
        self.register_buffer("own", torch.zeros(3))

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.5)


def main(out: Path, devices: int) -> None:
    torch.manual_seed(1)
    data = TensorDataset(torch.randn(40, 8), torch.randint(0, 2, (40,)))
    callback = GPartCallback(d=10, target_modules=["0"], modules_to_save=["2"])
    counted: list[int] = []
    module = Module()

    class Watch(ModelCheckpoint):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if devices == 1:
                return
            wrapped = trainer.strategy.model

            def hook(state: object, bucket: torch.distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
                counted.append(bucket.buffer().numel())
                work = torch.distributed.all_reduce(bucket.buffer().div_(devices), async_op=True).get_future()
                return work.then(lambda done: done.value()[0])

            wrapped.register_comm_hook(None, hook)

    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_steps=STEPS,
        callbacks=[callback, Watch(out, save_last=True)],
        use_distributed_sampler=False,
        default_root_dir=out,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    sampler = DistributedSampler(data, num_replicas=devices, rank=trainer.global_rank, shuffle=False)
    trainer.fit(module, DataLoader(data, BATCH // devices, sampler=sampler))
    found = {
        "theta": callback.adapter.theta.tolist(),
        "head": module.net[2].weight.tolist(),
        "reduced": counted,
        "buffers": [name for name, _ in module.named_buffers()],
    }
    (out / f"{devices}-{trainer.global_rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
