"""lightly: SimCLR and BYOL as its examples for Lightning write them, on a small backbone and drawn images."""

from __future__ import annotations

import copy
import tempfile
from typing import Any

import pytorch_lightning as pl
import torch
from facts import FirstLoss, Watched, difference, report
from lightly.loss import NegativeCosineSimilarity, NTXentLoss
from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead, SimCLRProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms import BYOLTransform, SimCLRTransform
from lightly.transforms.byol_transform import BYOLView1Transform, BYOLView2Transform
from lightly.utils.scheduler import cosine_schedule
from torch import Tensor, nn
from torchvision.transforms.functional import to_pil_image

IMAGES = torch.rand(32, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def backbone() -> nn.Module:
    """In the place of a ResNet without its last layer."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
    )


class SimCLR(pl.LightningModule):  # type: ignore[misc]
    """examples/pytorch_lightning/simclr.py."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = backbone()
        self.projection_head = SimCLRProjectionHead(32, 64, 16)
        self.criterion = NTXentLoss()

    def forward(self, x: Tensor) -> Tensor:
        """The projection."""
        z: Tensor = self.projection_head(self.backbone(x).flatten(start_dim=1))
        return z

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        """Two views of each image."""
        (x0, x1), _ = batch
        loss: Tensor = self.criterion(self.forward(x0), self.forward(x1))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """As the example."""
        return torch.optim.SGD(self.parameters(), lr=0.06)


class BYOL(pl.LightningModule):  # type: ignore[misc]
    """examples/pytorch_lightning/byol.py."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = backbone()
        self.projection_head = BYOLProjectionHead(32, 64, 16)
        self.prediction_head = BYOLPredictionHead(16, 64, 16)
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.projection_head_momentum = copy.deepcopy(self.projection_head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.projection_head_momentum)
        self.criterion = NegativeCosineSimilarity()

    def forward(self, x: Tensor) -> Tensor:
        """The prediction."""
        p: Tensor = self.prediction_head(self.projection_head(self.backbone(x).flatten(start_dim=1)))
        return p

    def forward_momentum(self, x: Tensor) -> Tensor:
        """The teacher's projection."""
        z: Tensor = self.projection_head_momentum(self.backbone_momentum(x).flatten(start_dim=1))
        return z.detach()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The teacher follows; two views of each image."""
        momentum = cosine_schedule(self.current_epoch, 10, 0.996, 1)
        update_momentum(self.backbone, self.backbone_momentum, m=momentum)
        update_momentum(self.projection_head, self.projection_head_momentum, m=momentum)
        (x0, x1), _ = batch
        loss: Tensor = 0.5 * (
            self.criterion(self.forward(x0), self.forward_momentum(x1))
            + self.criterion(self.forward(x1), self.forward_momentum(x0))
        )
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """As the example."""
        return torch.optim.SGD(self.parameters(), lr=0.06)


MODELS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "SimCLR": (SimCLR, SimCLRTransform(input_size=32), {"module": "backbone", "target_modules": ["0", "3"]}),
    "BYOL": (
        BYOL,
        BYOLTransform(BYOLView1Transform(input_size=32), BYOLView2Transform(input_size=32)),
        {"module": "backbone", "target_modules": ["0", "3"], "copies": ["backbone_momentum"]},
    ),
}


class Views(torch.utils.data.Dataset[Any]):
    """In the place of an image folder."""

    def __init__(self, transform: Any) -> None:
        self.transform = transform

    def __len__(self) -> int:
        """How many images."""
        return len(IMAGES)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """The views of one image, and its label."""
        return self.transform(to_pil_image(IMAGES[index])), 0


def project(name: str, folder: str, *callbacks: Any, epochs: int = 2, ckpt_path: str | None = None) -> tuple[Any, str]:
    """The example's last lines; returns the model and its checkpoint."""
    cls, transform, _ = MODELS[name]
    pl.seed_everything(0)
    model = cls()
    loader = torch.utils.data.DataLoader(Views(transform), batch_size=8, shuffle=True, drop_last=True)
    trainer = pl.Trainer(
        max_epochs=epochs,
        devices=1,
        accelerator="cpu",
        callbacks=[*callbacks],
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, loader, ckpt_path=ckpt_path)
    return model, trainer.checkpoint_callback.best_model_path


@torch.no_grad()
def answered(model: Any) -> Tensor:
    """What the model and, where there is one, its teacher say."""
    model.eval()
    teacher = getattr(model, "forward_momentum", model.forward)
    return torch.cat([model(IMAGES), teacher(IMAGES)])


def facts(name: str) -> dict[str, Any]:
    """Plain, with the line, resumed, and the backbone saved as lightly's guide saves it."""
    cls, _, settings = MODELS[name]
    with tempfile.TemporaryDirectory() as folder:
        plain = FirstLoss()
        project(name, folder + "/plain", plain, epochs=1)
        # The line: callbacks=[GPartCallback(...)]
        line = Watched(d=20, merge_at_end=True, **settings)
        model, _ = project(name, folder + "/line", line)
        expected = answered(model)
        half = project(name, folder + "/half", Watched(d=20, **settings), epochs=1)[1]
        resumed, _ = project(name, folder + "/resumed", Watched(d=20, **settings), ckpt_path=half)
        torch.save({"backbone": model.backbone.state_dict()}, folder + "/backbone.pt")
        loaded = cls().eval().backbone
        loaded.load_state_dict(torch.load(folder + "/backbone.pt", weights_only=True)["backbone"])
        return {
            "model": name,
            "line": f"callbacks=[GPartCallback(d=20, merge_at_end=True, {settings})]",
            **line.found(plain),
            "resumed, difference": difference(answered(resumed), expected),
            "own load, difference": difference(loaded(IMAGES).detach(), model.backbone(IMAGES).detach()),
        }


if __name__ == "__main__":
    report("lightly", rows=[facts(name) for name in MODELS])
