"""An image classifier trained by a loop of one's own with Lightning Fabric, on one device or on several.

    python examples/fabric.py                                   # drawn pictures, a tiny vision transformer, one CPU
    python examples/fabric.py --devices 2                       # the same numbers, from half a batch on each
    python examples/fabric.py --resume runs/fabric/last.ckpt --epochs 6
    python examples/fabric.py --model vit_small_patch16_224 --pretrained --data flowers --image-size 224

``attach`` stands before ``fabric.setup``, so that the gradient of theta is reduced among the devices.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import timm
import torch
from lightning.fabric import Fabric
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from gpart import GPartConfig, attach, load_adapter

SHAPES = ["circle", "square", "triangle"]


def draw_pictures(folder: Path) -> None:
    """Writes ``SPLIT/CLASS/NUMBER.png``, the layout of torchvision's ImageFolder and of your own data."""
    draws = torch.Generator().manual_seed(0)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=draws))

    for split, count in {"train": 32, "test": 16}.items():
        for shape in SHAPES:
            place = folder / split / shape
            place.mkdir(parents=True, exist_ok=True)
            for each in range(count):
                picture = Image.new("RGB", (32, 32), tuple(number(0, 90) for _ in range(3)))
                pen, colour = ImageDraw.Draw(picture), tuple(number(150, 256) for _ in range(3))
                x, y, size = number(2, 10), number(2, 10), number(16, 20)
                if shape == "circle":
                    pen.ellipse((x, y, x + size, y + size), fill=colour)
                elif shape == "square":
                    pen.rectangle((x, y, x + size, y + size), fill=colour)
                else:
                    pen.polygon([(x, y + size), (x + size, y + size), (x + size // 2, y)], fill=colour)
                picture.save(place / f"{each:03}.png")


def pictures(folder: Path, split: str, size: int) -> ImageFolder:
    """A split, as tensors between -1 and 1."""
    steps = [transforms.Resize((size, size)), transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
    return ImageFolder(folder / split, transforms.Compose(steps))


def build(arguments: argparse.Namespace, classes: int) -> nn.Module:
    """The base with a fresh head; the same on every rank, and each time."""
    torch.manual_seed(0)
    size = {"img_size": arguments.image_size}
    return timm.create_model(arguments.model, pretrained=arguments.pretrained, num_classes=classes, **size)


@torch.no_grad()
def accuracy(fabric: Fabric, model: nn.Module, loader: DataLoader) -> float:
    """The right part, over all devices."""
    model.eval()
    right, count = torch.zeros((), device=fabric.device), torch.zeros((), device=fabric.device)
    for images, labels in loader:
        right += (model(images).argmax(-1) == labels).sum()
        count += len(labels)
    model.train()
    sums = fabric.all_reduce(torch.stack([right, count]), reduce_op="sum")
    return (sums[0] / sums[1]).item()


def train(fabric: Fabric, arguments: argparse.Namespace) -> nn.Module:
    """The loop; returns the trained network, without Fabric's wrapper."""
    data = pictures(arguments.data, "train", arguments.image_size)
    network = build(arguments, len(data.classes))
    # In timm's blocks q, k and v are one weight; q and v are adapted, as the paper does.
    width = network.num_features
    config = GPartConfig(
        d=arguments.d,
        target_modules=["qkv"],
        slices={"qkv": [[0, width], [2 * width, 3 * width]]},
        modules_to_save=["head"],
    )
    adapter = attach(network, config)
    trained = [value for value in network.parameters() if value.requires_grad]
    model, optimizer = fabric.setup(network, torch.optim.AdamW(trained, lr=arguments.lr))
    each = arguments.batch_size // fabric.world_size
    order = torch.Generator().manual_seed(0)  # mixed once, so that one device and two see the same batches
    mixed = torch.utils.data.Subset(data, torch.randperm(len(data), generator=order).tolist())
    loader, test = fabric.setup_dataloaders(
        DataLoader(mixed, each), DataLoader(pictures(arguments.data, "test", arguments.image_size), each)
    )
    state = {"model": model, "optimizer": optimizer, "epoch": 0}
    frozen = adapter.base_parameters()
    if arguments.resume:
        fabric.load(arguments.resume, state, strict=False)  # the frozen weights are not in it, and are here already
    for epoch in range(state["epoch"], arguments.epochs):
        for at, (images, labels) in enumerate(loader, 1):
            last = at % arguments.accumulate == 0 or at == len(loader)
            with fabric.no_backward_sync(model, enabled=not last):  # theta's gradient is reduced once for each step
                loss: Tensor = nn.functional.cross_entropy(model(images), labels) / arguments.accumulate
                fabric.backward(loss)
            if last:
                fabric.clip_gradients(model, optimizer, max_norm=1.0)
                optimizer.step()
                optimizer.zero_grad()
        state["epoch"] = epoch + 1
        # Theta, the head and the optimizer's state of these; the base is left out.
        fabric.save(arguments.out / "last.ckpt", state, filter={"model": lambda name, _: name not in frozen})
        fabric.print(f"epoch {epoch + 1}: test accuracy {accuracy(fabric, model, test):.4f}")
    if fabric.is_global_zero:
        adapter.save(arguments.out / "adapter")
    fabric.print(f"{adapter} on {fabric.world_size} device(s), |theta| = {adapter.theta.norm():.6f}")
    return network


def main() -> None:
    """Trains, and loads what was trained into a network that knows no Fabric."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="test_vit", help="a timm vision transformer")
    parser.add_argument("--pretrained", action="store_true", help="with its weights from the hub")
    parser.add_argument(
        "--data", type=Path, help="a folder train/CLASS/*.png and test/CLASS/*.png; default drawn shapes"
    )
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--out", type=Path, default=Path("runs/fabric"), help="where everything is written")
    parser.add_argument("--resume", type=Path, help="a last.ckpt of the same settings")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=16, help="of all devices together")
    parser.add_argument("--accumulate", type=int, default=1, help="batches for each step")
    parser.add_argument("--d", type=int, default=500, help="the length of theta")
    parser.add_argument("--lr", type=float, default=0.01)
    arguments = parser.parse_args()

    fabric = Fabric(accelerator=arguments.accelerator, devices=arguments.devices)
    fabric.launch()
    if arguments.data is None:
        arguments.data = arguments.out / "pictures"
        if fabric.is_global_zero:
            draw_pictures(arguments.data)
        fabric.barrier()
    network = train(fabric, arguments)
    if not fabric.is_global_zero:
        return
    data = pictures(arguments.data, "test", arguments.image_size)
    images = torch.stack([image for image, _ in data]).to(fabric.device)
    plain = build(arguments, len(data.classes)).to(fabric.device)
    load_adapter(plain, arguments.out / "adapter")
    with torch.no_grad():
        same = torch.equal(plain.eval()(images), network.eval()(images))
    print(f"loaded into a plain network: the same logits to the bit: {same}")


if __name__ == "__main__":
    main()
