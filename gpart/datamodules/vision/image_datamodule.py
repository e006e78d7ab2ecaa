"""Image classification: the paper's eight tasks, folders of one's own, any image data set of the hub.

Invariant: a training row is either trained on or held out to choose the checkpoint, by its name and the seed alone; the
test part is only ever scored. What a training picture looks like depends on (seed, epoch, row) alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torchdata.stateful_dataloader import StatefulDataLoader

from gpart.datamodules.common.epoch_sampler import EpochSampler
from gpart.datamodules.common.seeded import SeededDataModule
from gpart.datamodules.common.splits import check_held_out, chosen, hold_out
from gpart.datamodules.vision.pictures import Collate, Images
from gpart.datamodules.vision.reading import evaluation_transform, training_transform
from gpart.datamodules.vision.settings import Normalisation, load_settings
from gpart.datamodules.vision.sources import Source


class ImageDataModule(SeededDataModule):
    """An image-classification data set for any model of Transformers or timm.

    ``fit`` trains on the training set without the part held out; ``validate``, and the choice of the checkpoint, use
    that part; ``test`` scores the data set's test split, and ``predict`` labels its pictures. Training pictures are
    random crops, at random mirrored; all others are resized and their centre is cut out. Size, mean, standard deviation
    and interpolation are the model's own. Batches hold ``pixel_values`` (batch, 3, height, width) in float32,
    ``labels`` (not for predict), the rows' numbers in their source as a list under ``idx``, and their files, such as
    ``cat/1.jpg``, or splits and numbers, such as ``train[17]``, as a list under ``file``.

    The data sets, and what is trained on / scored:

    - ``oxford-pets``: trainval / test; ``cifar10``, ``cifar100``: train / test; ``fgvc-aircraft``: trainval / test, by
      variant; ``dtd``: train and val of partition 1 / its test; torchvision downloads and verifies these.
    - ``eurosat``: torchvision's has no split: a fifth of each class, by a hash of the files' names, is the test part, the
      same for every ``seed``.
    - ``stanford-cars``: train / test of ``tanganke/stanford_cars``; ``resisc45``: train and validation / test of
      ``timm/resisc45``; through ``datasets``.
    - ``imagefolder``: your own, ``path/train/CLASS/*`` and ``path/test/CLASS/*``, or ``path/CLASS/*``, from which a fifth
      is cut as for EuroSAT.
    - ``hub``: any data set with an image column and a column of classes, or a folder in the hub's layout. Also for
      folders: a ``validation`` split is trained on where there is a test split, and else is the test part.

    Args:
        dataset: oxford-pets, stanford-cars, cifar10, cifar100, dtd, eurosat, fgvc-aircraft, resisc45, imagefolder or hub.
        model: whose pictures: a name on the hub, a folder, ``packaged:NAME``, or ``timm:NAME``.
        root: the folder of torchvision's downloads.
        path: of ``imagefolder`` (also ``packaged:NAME``) and ``hub``; or a copy of ``stanford-cars`` or ``resisc45``.
        batch_size: pictures a step and device.
        held_out: the part of the training set held out, stratified by class.
        train_size: train on this many of the others only, stratified; a smaller number is a part of a larger one.
        seed: what both choices come from. With the seed of ``seed_everything``, if there is one, it also gives the order
            and the random crops.
        num_workers: the loaders' processes.
        crop_scale: the smallest and the largest share of a picture's area that a training crop takes; where a class
            shows in a small spot, 0.08 would often cut it away.
        hflip: the probability that a training picture is mirrored; 0 where left and right differ, as in handwriting.
        image_size: height and width for the model, in pixels; default the model's own.
        label_column: ``hub``: the column of classes, where there are several.

    Raises:
        ValueError: if a setting is out of its range.
    """

    def __init__(
        self,
        dataset: str,
        model: str,
        root: str = "data",
        path: str | None = None,
        batch_size: int = 64,
        held_out: float = 0.1,
        train_size: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
        crop_scale: Sequence[float] = (0.08, 1.0),
        hflip: float = 0.5,
        image_size: int | None = None,
        label_column: str | None = None,
    ) -> None:
        super().__init__()
        check_held_out(held_out)
        if len(crop_scale) != 2 or not 0 < crop_scale[0] <= crop_scale[1] <= 1:
            raise ValueError(f"crop_scale is two shares, above 0, rising, up to 1, got {tuple(crop_scale)}")
        if not 0 <= hflip <= 1:
            raise ValueError(f"hflip is a probability, from 0 to 1, got {hflip}")
        if image_size is not None and image_size < 1:
            raise ValueError(f"image_size is a number of pixels, at least 1, got {image_size}")
        # Plain types: a checkpoint holds these, and torch.load(weights_only=True) refuses a Path.
        model, root, path = str(model), str(root), None if path is None else str(path)
        crop_scale = [float(share) for share in crop_scale]
        self.source = Source(dataset, root, path, label_column)
        self.save_hyperparameters()
        self.parts: dict[str, Images] = {}
        self.classes: tuple[str, ...] = ()
        self.settings: Normalisation | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes' names, in the order of their numbers.

        Raises:
            ValueError: if setup() has not run.
        """
        if not self.classes:
            raise ValueError(f"the classes of {self.hparams['dataset']} are not known yet: setup() has not run")
        return self.classes

    @property
    def num_labels(self) -> int:
        """How many classes there are."""
        return len(self.labels)

    def prepare_data(self) -> None:
        """Fetches the data and the model's settings, on one process only."""
        load_settings(self.hparams["model"])
        self.source.prepare()

    def setup(self, stage: str) -> None:
        """Parts what the stage needs and is not there yet.

        Raises:
            FileNotFoundError: if data or model are not there.
            ValueError: if the data is not as it should be, ``train_size`` is more than there is, or the number of
                classes is not the LightningModule's ``num_labels``.
        """
        stage = str(getattr(stage, "value", stage))
        part = "train" if stage in ("fit", "validate") else "test"
        if part not in self.parts:
            if self.settings is None:
                size, own = self.hparams["image_size"], load_settings(self.hparams["model"])
                self.settings = own if size is None else own.resized(size)
            self._read(part, self.settings)
        self._check_head()

    def train_dataloader(self) -> StatefulDataLoader:
        """The training set without the part held out, in random order."""
        images = self._part("train")
        return self._loader(images, sampler=self.sampler(len(images)))

    def val_dataloader(self) -> StatefulDataLoader:
        """The part held out, which chooses the checkpoint."""
        return self._loader(self._part("val"))

    def test_dataloader(self) -> StatefulDataLoader:
        """The test split, which gives the score."""
        return self._loader(self._part("test"))

    def predict_dataloader(self) -> StatefulDataLoader:
        """The test split; batches hold no labels."""
        return self._loader(self._part("test"), labels=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over the run's seed, also for the crops."""
        super().load_state_dict(state_dict)
        if "train" in self.parts:  # setup came first
            self.parts["train"] = replace(self.parts["train"], seed=self.run_seed)

    def _read(self, part: str, settings: Normalisation) -> None:
        pictures, rows = self.source.load(part)
        self.classes = pictures.classes
        if part == "test":
            self.parts["test"] = Images(pictures, rows, evaluation_transform(settings))
            return
        ids, seed, size = pictures.rows(), self.hparams["seed"], self.hparams["train_size"]
        places, held = hold_out([ids[row] for row in rows], self.hparams["held_out"], seed)
        rest = [rows[at] for at in places]
        if size is not None:
            if not 1 <= size <= len(rest):
                raise ValueError(f"train_size must be from 1 to the {len(rest)} rows not held out, got {size}")
            rest = chosen(ids, rest, size, seed)
        transform = training_transform(settings, self.hparams["crop_scale"], self.hparams["hflip"])
        self.parts["train"] = Images(pictures, rest, transform, self.run_seed)
        self.parts["val"] = Images(pictures, [rows[at] for at in held], evaluation_transform(settings))

    def _check_head(self) -> None:
        module = None if self.trainer is None else self.trainer.lightning_module
        head = None if module is None else module.hparams.get("num_labels")
        if head is not None and head != self.num_labels:
            raise ValueError(
                f"{self.hparams['dataset']} has {self.num_labels} classes, and the model's head num_labels={head}"
            )

    def _part(self, name: str) -> Images:
        if name not in self.parts:
            raise ValueError(f"no part {name!r} among {sorted(self.parts)}: setup() has not run for this stage")
        return self.parts[name]

    def _loader(self, images: Images, labels: bool = True, sampler: EpochSampler | None = None) -> StatefulDataLoader:
        return self.loader(images, Collate(labels), self.hparams["batch_size"], sampler)
