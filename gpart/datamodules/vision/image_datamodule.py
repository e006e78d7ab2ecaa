"""Image classification: the paper's eight tasks, your own folders, or any image data set on the hub.

Invariant: a training row is either trained on or held out to select the checkpoint. Only its name, its split and the
seed decide which. The test split is used for nothing but the final score. The random crop of a training picture depends
only on (seed, epoch, row).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from torchdata.stateful_dataloader import StatefulDataLoader

from gpart.datamodules.common.epoch_sampler import EpochSampler
from gpart.datamodules.common.own_rows import BadRows, Policy
from gpart.datamodules.common.seeded import SeededDataModule, check_loading
from gpart.datamodules.common.splits import check_held_out
from gpart.datamodules.vision.checking import checked
from gpart.datamodules.vision.parts import split
from gpart.datamodules.vision.pictures import Collate, Images
from gpart.datamodules.vision.reading import evaluation_transform, training_transform
from gpart.datamodules.vision.settings import Normalisation, load_settings
from gpart.datamodules.vision.sources import DRAWN, OWN, DatasetName, Part, Source
from gpart.errors import GPartError

_PARTS = {"fit": "train", "validate": "train", "test": "test", "predict": "predict"}  # that a stage needs


class ImageDataModule(SeededDataModule):
    """An image-classification data set for any model of Transformers or timm.

    - ``fit`` trains on the training split, without the rows that are held out.
    - ``validate`` uses the rows held out. They also select the checkpoint.
    - ``test`` scores the test split.
    - ``predict`` labels the pictures of the test split; of an ``imagefolder`` without one, all pictures below ``path``,
      with or without folders for the classes.

    Training pictures are random crops, which are mirrored at random. All other pictures are resized, and their centre
    is cut out. Size, mean, standard deviation and interpolation are those of the model. A batch holds ``pixel_values``
    (batch, 3, height, width) in float32, ``labels`` (but not for ``predict``), and two lists: ``idx``, the rows'
    numbers in their source, and ``file``, their files, such as ``cat/1.jpg``, or their splits and numbers, such as
    ``train[17]``.

    These are the data sets, with the splits of the paper's protocol:

    - ``oxford-pets``: trained on nine tenths of trainval, scored on test.
    - ``cifar10`` and ``cifar100``: trained on nine tenths of train, scored on test.
    - ``stanford-cars``: trained on nine tenths of train of ``tanganke/stanford_cars``, scored on its test.
    - ``fgvc-aircraft`` (by variant): trained on train, val selects the checkpoint, scored on test.
    - ``eurosat`` and ``resisc45``: trained on train of ``blanchon/EuroSAT_RGB`` and ``timm/resisc45``, their validation
      selects the checkpoint, scored on their test.
    - ``dtd``: all 5,640 pictures are split by ``seed``: 4,060 are trained on, 452 select the checkpoint, 1,128 are the
      test split. Here the classes keep their proportions, which a split at random does roughly.
    - ``imagefolder``: your own pictures in ``path/train/CLASS/*`` and ``path/test/CLASS/*``; or in ``path/CLASS/*``,
      from which a fifth is cut as the test split, by a hash of the files' names, the same for every ``seed``. In place
      of the CLASS folders there may be a ``metadata.csv`` or ``metadata.jsonl`` with ``file_name`` and ``label``. All
      pictures are looked at before the first step (:mod:`.checking` has the cost: a second for 1,000 JPEGs on a core).
    - ``hub``: any data set on the hub, or folder with the same layout, with an image column and a column of classes.

    torchvision downloads and verifies pets, CIFAR, FGVC-Aircraft and DTD. The others are read with ``datasets`` or from
    folders. Data sets of the last two kinds may have a ``validation`` split. It selects the checkpoint if there is a
    test split; else it is the test split.

    Args:
        dataset: the data set's name.
        model: the model that gets the pictures: a name on the hub, a folder, ``packaged:NAME``, or ``timm:NAME``. The
            default is the LightningModule's ``model``.
        root: the folder for torchvision's downloads.
        path: the data of ``imagefolder`` (also ``packaged:NAME``) or ``hub``, or a copy of ``stanford-cars``,
            ``eurosat`` or ``resisc45``.
        batch_size: pictures per step and device.
        held_out: the fraction of all that is no test split that is held out, stratified by class. By default, the data
            set's own validation split is held out, or a tenth if it has none. Of an ``imagefolder`` that is
            enough to choose by: 50, of fewer than 200 a quarter, and two of each class.
        train_size: train on this many of the remaining rows only, stratified. A smaller number takes a subset of what a
            larger one takes.
        seed: the seed of both choices, and of DTD's test split. Together with the seed of ``seed_everything``, if it is
            called, it also gives the order of the training rows and the random crops.
        num_workers: the number of worker processes of each data loader.
        crop_scale: the smallest and the largest share of a picture's area that a training crop takes. If a class shows
            in a small spot only, a share of 0.08 would often cut it away.
        hflip: the probability that a training picture is mirrored. Set it to 0 where left and right differ, as in
            handwriting.
        image_size: the height and width of the model's input, in pixels; the default is the model's own.
        label_column: for ``hub``, the column of classes, if there are several.
        on_bad_row: for ``imagefolder``, at a picture that can't be read, a class without pictures, or one that is not in
            the training split: stop with an ``error`` before the first step, or ``skip`` it and say how many.

    Raises:
        GPartError: if a setting is out of its range.
    """

    def __init__(
        self,
        dataset: DatasetName = "imagefolder",
        model: str | None = None,
        root: str = "data",
        path: str | None = None,
        batch_size: int = 64,
        held_out: float | None = None,
        train_size: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
        crop_scale: Sequence[float] = (0.08, 1.0),
        hflip: float = 0.5,
        image_size: int | None = None,
        label_column: str | None = None,
        on_bad_row: Policy = "error",
    ) -> None:
        super().__init__()
        if held_out is not None:
            check_held_out(held_out)
        check_loading(num_workers, batch_size=batch_size)
        if len(crop_scale) != 2 or not 0 < crop_scale[0] <= crop_scale[1] <= 1:
            raise GPartError(f"crop_scale is two shares, above 0, rising, up to 1, got {tuple(crop_scale)}")
        if not 0 <= hflip <= 1:
            raise GPartError(f"hflip is a probability, from 0 to 1, got {hflip}")
        if image_size is not None and image_size < 1:
            raise GPartError(f"image_size is a number of pixels, at least 1, got {image_size}")
        BadRows(on_bad_row)  # which checks it
        if on_bad_row != "error" and dataset != OWN[0]:
            raise GPartError(f"on_bad_row={on_bad_row!r} is for dataset {OWN[0]!r}, got {dataset!r}")
        # Plain types, since a checkpoint holds the hyperparameters and torch.load(weights_only=True) refuses a Path.
        root, (model, path) = str(root), (None if given is None else str(given) for given in (model, path))
        crop_scale = [float(share) for share in crop_scale]
        self.source = Source(dataset, root, path, label_column)
        self.save_hyperparameters()
        self.parts: dict[str, Images] = {}
        self.classes: tuple[str, ...] = ()
        self.settings: Normalisation | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes' names, in the order of their numbers; none if only a folder without classes was read.

        Raises:
            GPartError: if setup() has not run.
        """
        if not self.classes and not self.parts:
            raise GPartError(f"the classes of {self.hparams['dataset']} are not known yet: setup() has not run")
        return self.classes

    @property
    def num_labels(self) -> int | None:
        """The number of classes; None if they are not known."""
        return len(self.labels) or None

    def prepare_data(self) -> None:
        """Downloads the data and the model's settings. Only one process does this."""
        load_settings(self.base_model())
        self.source.prepare()

    def setup(self, stage: str) -> None:
        """Makes the splits that the stage needs, unless they are there already.

        Raises:
            GPartFileError: if the data or the model are not there.
            GPartError: if the data is damaged or lacks what is needed, ``train_size`` is larger than the number of
                rows, or the number of classes differs from the LightningModule's ``num_labels``.
        """
        stage = str(getattr(stage, "value", stage))
        part, own = _PARTS[stage], self.hparams["dataset"] == OWN[0]
        # All parts of one's own pictures are looked at before the first step, not only those of the fit.
        parts = [name for name in ((part, "test") if own and stage == "fit" else (part,)) if name not in self.parts]
        if parts:
            if self.settings is None:
                size, settings = self.hparams["image_size"], load_settings(self.base_model())
                self.settings = settings if size is None else settings.resized(size)
            found = {name: self.source.load(name, self.hparams["seed"]) for name in parts}
            if own:
                found = checked(found, self.hparams["on_bad_row"], str(self.hparams["path"]), self.on_one_rank)
            for name, source in found.items():
                self._read(name, source, self.settings)
        self._check_head()

    def train_dataloader(self) -> StatefulDataLoader:
        """The training split without the rows held out, in random order."""
        images = self._split("train")
        return self._loader(images, sampler=self.sampler(len(images)))

    def val_dataloader(self) -> StatefulDataLoader:
        """The rows held out, which select the checkpoint."""
        return self._loader(self._split("val"))

    def test_dataloader(self) -> StatefulDataLoader:
        """The test split, which gives the score."""
        return self._loader(self._split("test"))

    def predict_dataloader(self) -> StatefulDataLoader:
        """The test split, or the whole folder. Its batches hold no labels."""
        return self._loader(self._split("predict"), labels=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over the run's seed from a checkpoint, also for the random crops.

        Raises:
            GPartError: if the data set's test split is drawn by another seed than the checkpoint's, so that pictures of
                the one split were trained on in the other.
        """
        trained, seed = state_dict["run"].rpartition(":")[2], self.hparams["seed"]
        if self.source.dataset in DRAWN and trained != str(seed):
            raise GPartError(
                f"the checkpoint was trained on the split of {self.source.dataset} by seed={trained}, and this is the one"
                f" by seed={seed}, whose test pictures it may have seen: use --data.seed {trained}"
            )
        super().load_state_dict(state_dict)
        if "train" in self.parts:  # setup() ran before
            self.parts["train"] = replace(self.parts["train"], seed=self.run_seed)

    def adapter_facts(self) -> dict[str, Any]:
        """What an adapter's file should say: the classes' names, and how pictures are resized and normalised."""
        known = {} if self.settings is None else asdict(self.settings)
        inputs = {name: list(value) if isinstance(value, tuple) else value for name, value in known.items()}
        return {"labels": list(self.classes) or None, "inputs": inputs}

    def _read(self, part: str, source: Part, settings: Normalisation) -> None:
        pictures = source.pictures
        self.classes = pictures.classes or self.classes
        if part != "train":
            self.parts[part] = Images(pictures, source.rows, evaluation_transform(settings))
            return
        rest, held = split(source, self.hparams, len(self.classes))
        transform = training_transform(settings, self.hparams["crop_scale"], self.hparams["hflip"])
        self.parts["train"] = Images(pictures, rest, transform, self.run_seed)
        self.parts["val"] = Images(pictures, held, evaluation_transform(settings))

    def _check_head(self) -> None:
        module = None if self.trainer is None else self.trainer.lightning_module
        head = None if module is None else module.hparams.get("num_labels")
        # The classes of a plain folder are not known, and predict does not need them.
        if head is not None and self.classes and head != self.num_labels:
            raise GPartError(
                f"{self.hparams['dataset']} has {self.num_labels} classes, and the model's head num_labels={head}"
            )

    def _split(self, name: str) -> Images:
        if name not in self.parts:
            raise GPartError(f"no part {name!r} among {sorted(self.parts)}: setup() has not run for this stage")
        return self.parts[name]

    def _loader(self, images: Images, labels: bool = True, sampler: EpochSampler | None = None) -> StatefulDataLoader:
        return self.loader(images, Collate(labels), self.hparams["batch_size"], sampler)
