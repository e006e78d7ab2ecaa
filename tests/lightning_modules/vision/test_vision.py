"""ImageClassifier: networks of Transformers and timm, training options, scores, predictions, refusals."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import Dinov2Config, Dinov2Model, PreTrainedModel, ViTConfig, ViTForImageClassification

from gpart.callbacks import GPartCallback, LinearProbe, PredictionWriter
from gpart.errors import GPartError, GPartFileError
from gpart.lightning_modules import ImageClassifier
from gpart.lightning_modules.common.activations import checkpoint_activations
from gpart.lightning_modules.vision.batches import check_labels, mixing_share

CLASSES = 3
KINDS = ["vit", "dinov2", "timm"]
TARGETS = {"vit": r".*\.(query|value|[qv]_proj)", "dinov2": r".*\.(query|value|[qv]_proj)", "timm": r".*\.qkv"}
HEAD = {"vit": "classifier", "dinov2": "classifier", "timm": "head"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Random networks as folders: a ViT with an ImageNet-like head of 7 classes, a DINOv2 without a head, a timm ViT."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    vit = ViTConfig(**sizes, intermediate_size=32, num_labels=7, hidden_dropout_prob=0.1)
    ViTForImageClassification(vit).save_pretrained(folder / "vit")
    Dinov2Model(Dinov2Config(**sizes, mlp_ratio=2)).save_pretrained(folder / "dinov2")
    sizes = {"img_size": 28, "patch_size": 14, "embed_dim": 16, "depth": 2, "num_heads": 2}
    network = timm.create_model("vit_tiny_patch16_224", num_classes=7, **sizes)
    timm.models.save_for_hf(network, folder / "timm", model_args=sizes, safe_serialization=True)
    return {"vit": str(folder / "vit"), "dinov2": str(folder / "dinov2"), "timm": f"timm:{folder / 'timm'}"}


@pytest.fixture
def module(models: dict[str, str]) -> Any:
    return lambda kind="vit", **more: ImageClassifier(
        **{"model": models[kind], "num_labels": CLASSES, "lr": 1e-3, **more}
    )


def pictures(count: int = 24, classes: int = CLASSES, first: int = 0) -> list[dict[str, Any]]:
    """Each class is bright in a channel of its own, so that it can be learned."""
    noise = torch.randn(count, 3, 28, 28, generator=torch.Generator().manual_seed(7))
    for place in range(count):
        noise[place, place % 3] += 2.0
    return [
        {"pixel_values": noise[i], "labels": first + i % classes, "idx": 100 + i, "file": f"shelf/{i:03}.png"}
        for i in range(count)
    ]


def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    batch: dict[str, Any] = {name: [row[name] for row in rows] for name in rows[0]}
    batch["pixel_values"] = torch.stack(batch["pixel_values"])
    if "labels" in batch:
        batch["labels"] = torch.tensor(batch["labels"])
    return batch


def loader(rows: list[dict[str, Any]] | None = None, batch_size: int = 8) -> DataLoader:
    return DataLoader(pictures() if rows is None else rows, batch_size, collate_fn=collate)


def trainer(*callbacks: Callback, **more: Any) -> Trainer:
    quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    limit = {} if "max_epochs" in more else {"max_steps": 3}
    return Trainer(**{"accelerator": "cpu", "callbacks": list(callbacks), **quiet, **limit, **more})


def gpart(kind: str, **more: Any) -> GPartCallback:
    slices = {"qkv": [[0, 16], [32, 48]]} if kind == "timm" else None
    settings = {"d": 20, "target_modules": TARGETS[kind], "modules_to_save": [HEAD[kind]], "slices": slices}
    return GPartCallback(**{**settings, **more})


def built(module: ImageClassifier) -> ImageClassifier:
    module.configure_model()
    return module


# Networks


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_trains_by_gpart_and_its_head_has_its_own_rate(kind: str, module: Any) -> None:
    own, method = module(kind, lr=5e-2, head_lr=1e-2, weight_decay=0.1, head_weight_decay=0.3), gpart(kind)
    run = trainer(method)
    run.fit(own, loader(), loader())
    assert method.adapter.size == 2 * 2 * 16 * 16  # q and v of two layers
    rates = run.lr_scheduler_configs[0].scheduler.base_lrs
    names = {id(value): name for name, value in own.model.named_parameters()}
    groups = {
        names[id(value)]: (rate, group["weight_decay"])
        for group, rate in zip(run.optimizers[0].param_groups, rates, strict=True)
        for value in group["params"]
    }
    head = HEAD[kind]
    assert groups == {
        f"{head}.weight": (1e-2, 0.3),
        f"{head}.bias": (1e-2, 0.0),
        method.adapter.theta_name: (5e-2, 0.1),
    }
    assert method.adapter.theta.abs().sum() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_network_is_the_checkpoints_but_for_a_new_head(kind: str, module: Any, models: dict[str, str]) -> None:
    from safetensors.torch import load_file

    stored = load_file(Path(models[kind].removeprefix("timm:")) / "model.safetensors")
    own = built(module(kind)).model
    assert own.training
    state, head = own.state_dict(), HEAD[kind]
    assert state[f"{head}.weight"].shape[0] == CLASSES
    # Old names of Transformers' own files are not the modules': by values, then.
    held = [value for name, value in state.items() if not name.startswith(head)]
    for name, value in stored.items():
        assert name.startswith(head) or any(value.shape == x.shape and torch.equal(value, x) for x in held), name


def test_a_head_that_fits_is_kept(module: Any, models: dict[str, str]) -> None:
    from safetensors.torch import load_file

    for kind, key in (("vit", "classifier.weight"), ("timm", "head.weight")):
        stored = load_file(Path(models[kind].removeprefix("timm:")) / "model.safetensors")[key]
        assert torch.equal(built(module(kind, num_labels=7)).model.state_dict()[key], stored)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_new_head_that_is_forgotten_is_refused(kind: str, channels_last: bool, module: Any) -> None:
    said = (
        r"\['head'\] is frozen.*random, for 3 classes" if kind == "timm" else r"leaves out \['classifier.weight', 'clas"
    )
    # For Transformers' models it is the adapter that refuses, for timm's the module.
    with pytest.raises(GPartError if kind == "timm" else ValueError, match=said):
        trainer(gpart(kind, modules_to_save=None)).fit(module(kind, channels_last=channels_last), loader())


def test_a_timm_head_that_was_loaded_may_be_frozen(module: Any) -> None:
    own = module("timm", num_labels=7)
    trainer(gpart("timm", modules_to_save=None)).fit(own, loader())


def test_the_classes_names_are_in_the_networks_config(module: Any) -> None:
    config = built(module(labels=["cat", "dog", "hen"])).model.config
    assert config.id2label == {0: "cat", 1: "dog", 2: "hen"}
    assert config.label2id == {"cat": 0, "dog": 1, "hen": 2}
    assert built(module()).model.config.num_labels == CLASSES


@pytest.mark.parametrize("kind", KINDS)
def test_both_libraries_outputs_are_logits(kind: str, module: Any) -> None:
    own = built(module(kind)).eval()
    batch = collate(pictures(2))["pixel_values"]
    with torch.no_grad():
        output = own.model(batch)
        want = output if kind == "timm" else output.logits
        assert torch.equal(own(batch), want)
    assert want.shape == (2, CLASSES)


@pytest.mark.parametrize("kind", KINDS)
def test_activation_checkpointing_changes_no_gradient(kind: str, module: Any) -> None:
    batch = collate(pictures(4))

    def gradients(checkpointing: bool) -> tuple[list[torch.Tensor], int]:
        torch.manual_seed(0)
        own, method = built(module(kind, gradient_checkpointing=checkpointing)), gpart(kind)
        method.apply(own.model)
        calls = 0

        def count(layer: nn.Module, inputs: Any) -> None:
            nonlocal calls
            calls += 1

        layer = next(layer for name, layer in own.model.named_modules() if name.endswith(("norm1", "layernorm_before")))
        layer.register_forward_pre_hook(count)
        torch.manual_seed(1)
        cross_entropy(own(batch["pixel_values"]), batch["labels"]).backward()
        assert method.adapter.theta.grad is not None
        return [value.grad for value in own.model.parameters() if value.grad is not None], calls

    plain, once = gradients(False)
    recomputed, twice = gradients(True)
    assert (once, twice) == (1, 2)  # the layer really is run again in the backward pass
    assert all(torch.equal(a, b) for a, b in zip(plain, recomputed, strict=True))


def test_channels_last_reaches_the_weights_and_the_pictures(module: Any) -> None:
    own = built(module("timm", channels_last=True))
    assert own.model.patch_embed.proj.weight.is_contiguous(memory_format=torch.channels_last)
    seen: list[bool] = []
    own.model.patch_embed.proj.register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
    )
    batch = collate(pictures(2))["pixel_values"]
    assert not batch.is_contiguous(memory_format=torch.channels_last)
    own.eval()
    with torch.no_grad():
        logits = own(batch)
        assert seen == [True]
        own.model.to(memory_format=torch.contiguous_format)
        own.hparams["channels_last"] = False
        assert torch.allclose(own(batch), logits, atol=1e-5)
        assert seen == [True, False]


# Training


def step(own: ImageClassifier, batch: dict[str, Any], index: int = 0) -> torch.Tensor:
    own.log = lambda *args, **more: None  # no trainer
    return own.eval().training_step(batch, index)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_cross_entropy_with_the_labels_smoothed(smoothing: float, module: Any) -> None:
    own, batch = built(module(label_smoothing=smoothing)), collate(pictures(6))
    loss = step(own, batch)
    target = torch.full((6, CLASSES), smoothing / CLASSES)
    target[range(6), batch["labels"]] += 1 - smoothing
    want = -(target * own(batch["pixel_values"]).log_softmax(-1)).sum(-1).mean()
    assert loss.item() == pytest.approx(want.item(), rel=1e-5)


def test_mixup_mixes_pictures_and_labels_by_one_share(module: Any) -> None:
    own, batch = built(module(mixup=0.4, label_smoothing=0.1)), collate(pictures(6))
    share = mixing_share(0.4, torch.initial_seed(), 0, 2, 0)
    assert 0 < share < 1
    loss = step(own, batch, 2)
    other = [5, 0, 1, 2, 3, 4]
    x, y = batch["pixel_values"], batch["labels"]
    hot = nn.functional.one_hot(y, CLASSES).float()
    target = 0.9 * (share * hot + (1 - share) * hot[other]) + 0.1 / CLASSES
    want = -(target * own(share * x + (1 - share) * x[other]).log_softmax(-1)).sum(-1).mean()
    assert loss.item() == pytest.approx(want.item(), rel=1e-4)
    assert step(own, batch, 3).item() != pytest.approx(loss.item())


def test_a_mixing_share_depends_on_its_numbers_alone_and_is_betas() -> None:
    first = mixing_share(0.2, 1, 2, 3, 0)
    torch.manual_seed(9)
    assert mixing_share(0.2, 1, 2, 3, 0) == first
    assert len({mixing_share(0.2, *seed) for seed in [(1, 2, 3, 0), (0, 2, 3, 0), (1, 0, 3, 0), (1, 2, 0, 0)]}) == 4
    shares = torch.tensor([mixing_share(0.2, 0, 0, index, 0) for index in range(2000)])
    assert shares.mean().item() == pytest.approx(0.5, abs=0.03)
    assert shares.var().item() == pytest.approx(1 / (4 * (2 * 0.2 + 1)), abs=0.01)  # that of Beta(a, a)


def test_a_resumed_epoch_mixes_as_the_first_run_did(module: Any) -> None:
    """By the batch's number within the epoch, the epoch, and the seed; not by what was drawn since."""

    class Inputs(Callback):
        def __init__(self) -> None:
            self.seen: list[torch.Tensor] = []

        def on_train_start(self, run: Any, own: Any) -> None:
            own.model.register_forward_pre_hook(lambda _, inputs: self.seen.append(inputs[0].clone()))

    runs = []
    for extra in (0, 3):
        torch.manual_seed(4)
        own, inputs = module(mixup=0.5), Inputs()
        own.configure_model()
        torch.rand(extra)
        trainer(inputs, max_epochs=2, limit_train_batches=2).fit(own, loader())
        runs.append(inputs.seen)
    assert len(runs[0]) == 4
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    assert not torch.equal(runs[0][0], runs[0][2])  # the same batch in the next epoch


def test_it_learns(module: Any) -> None:
    run = trainer(LinearProbe(["classifier"]), max_epochs=12)
    own = module("vit", lr=0.1, warmup_ratio=0.0)
    run.fit(own, loader(), loader())
    assert run.callback_metrics["val/accuracy"] > 0.9


# Scores


class Constant(nn.Module):
    """A network whose logits are the pictures' first numbers."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes, self.scale = classes, nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * x.flatten(1)[:, : self.classes]


def answering(answers: list[int], truth: list[int], classes: int, **more: Any) -> tuple[ImageClassifier, DataLoader]:
    """A module that gives these answers, and the loader with these labels."""
    own = ImageClassifier(num_labels=classes, **more)
    own.model = Constant(classes)
    rows = pictures(len(truth), classes)
    for row, answer, label in zip(rows, answers, truth, strict=True):
        row["pixel_values"].zero_().view(-1)[answer] = 2.0
        row["labels"] = label
    return own, loader(rows, 4)


def test_scores_are_those_of_the_whole_part_and_of_each_class() -> None:
    labels, answers = [0, 0, 0, 0, 0, 0, 1, 1, 2, 2], [0, 0, 0, 0, 1, 1, 1, 0, 2, 2]
    own, data = answering(answers, labels, 5, labels=["ant", "bee", "cow", "dog", "elk"])
    tested = trainer().test(own, data, verbose=False)[0]
    right, wrong = -math.log(math.e**2 / (math.e**2 + 4)), -math.log(1 / (math.e**2 + 4))
    assert tested == pytest.approx(
        {
            "test/loss": (7 * right + 3 * wrong) / 10,
            "test/accuracy": 0.7,
            "test/accuracy_per_class": (4 / 6 + 1 / 2 + 1) / 3,  # dog and elk have no pictures, and no accuracy
            "test/accuracy/ant": 4 / 6,
            "test/accuracy/bee": 1 / 2,
            "test/accuracy/cow": 1.0,
        }
    )
    scores = trainer().validate(own, data, verbose=False)[0]
    assert scores == pytest.approx(
        {f"val/{k}": tested[f"test/{k}"] for k in ("loss", "accuracy", "accuracy_per_class")}
    )
    # Nothing is left from before.
    _, all_right = answering([3, 4], [3, 4], 5)
    assert trainer().validate(own, all_right, verbose=False)[0]["val/accuracy"] == 1.0
    tested = trainer().test(own, all_right, verbose=False)[0]
    assert tested["test/accuracy"] == 1.0
    assert not {"test/accuracy/ant", "test/accuracy/bee"} & set(tested)


@pytest.mark.parametrize(("classes", "scalars"), [(20, 20), (21, 0)])
def test_many_classes_have_no_scalar_each(classes: int, scalars: int) -> None:
    own, data = answering(list(range(classes)), list(range(classes)), classes)
    tested = trainer().test(own, data, verbose=False)[0]
    assert sum(name.startswith("test/accuracy/") for name in tested) == scalars
    assert tested["test/accuracy_per_class"] == 1.0


def test_the_validation_loss_is_plain(module: Any) -> None:
    plain, other = [
        trainer().validate(answering([0, 1, 2, 0], [0, 1, 2, 2], 3, **more)[0], loader(), verbose=False)[0]["val/loss"]
        for more in ({}, {"label_smoothing": 0.3, "mixup": 0.5})
    ]
    assert plain == other


# Predictions


def test_predictions_name_class_probability_and_file_and_need_no_labels(module: Any, tmp_path: Path) -> None:
    rows = pictures(5)
    for row in rows:
        row["labels"] = -1  # unknown
    own, path = module(labels=["cat", "dog", "hen"], allow_untrained_head=True), tmp_path / "answers.jsonl"
    trainer(PredictionWriter(str(path))).predict(own, loader(rows, 2))
    written = [json.loads(line) for line in path.read_text().splitlines()]
    with torch.no_grad():
        want = own.eval()(collate(rows)["pixel_values"]).softmax(-1)
    assert [row["label"] for row in written] == [["cat", "dog", "hen"][i] for i in want.argmax(-1).tolist()]
    assert [row["probability"] for row in written] == pytest.approx(want.max(-1).values.tolist(), abs=1e-4)
    assert [(row["idx"], row["file"]) for row in written] == [(100 + i, f"shelf/{i:03}.png") for i in range(5)]
    assert own.predict_step({"pixel_values": torch.randn(1, 3, 28, 28)}, 0).keys() == {"label", "probability"}


# Refusals


@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
def test_a_label_that_is_no_class_is_named_with_its_file(stage: str, module: Any) -> None:
    rows = pictures(9, classes=9)
    said = r"shelf/003.png has label 3, but num_labels=3: labels are 0 to 2; 5 of this batch's 8 are outside"
    with pytest.raises(GPartError, match=said):
        getattr(trainer(num_sanity_val_steps=0), stage)(module(allow_untrained_head=True), loader(rows))


def test_labels_below_0_and_batches_without_files() -> None:
    with pytest.raises(GPartError, match="b has label -1, but num_labels=2"):
        check_labels(torch.tensor([1, -1]), 2, ["a", "b"])
    check_labels(torch.tensor([1, 0]), 2, ["a", "b"])
    own = ImageClassifier(num_labels=2)
    own.model = Constant(2)
    rows = [{key: value for key, value in row.items() if key != "file"} for row in pictures(2, first=3)]
    with pytest.raises(GPartError, match="picture 100 has label 3"):
        trainer().test(own, loader(rows))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"num_labels": 1}, "num_labels must be at least 2, got 1"),
        ({"labels": ["a"]}, "labels names 1 classes, num_labels is 3"),
        ({"labels": ["a", "b", "a"]}, r"\['a'\] stand more than once among 3"),
        ({"schedule": "step"}, "one of .*'linear', 'cosine', 'constant'.*, got 'step'"),
        ({"warmup_ratio": -0.1}, "from 0 to 1, got -0.1"),
        ({"label_smoothing": 1.0}, "from 0 to below 1, got 1.0"),
        ({"mixup": -1.0}, "mixup must be 0, .*got -1.0"),
    ],
)
def test_a_setting_out_of_range_is_refused(module: Any, more: dict[str, Any], said: str) -> None:
    with pytest.raises(GPartError, match=said):
        module(**more)


def test_a_model_that_timm_has_not_is_refused(module: Any, models: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(GPartFileError, match=r"no model 'vit_tiny_patch16_225'; near it are .*vit_tiny_patch16_224"):
        built(module(model="timm:vit_tiny_patch16_225"))
    with pytest.raises(GPartFileError, match=f"there is no folder {tmp_path}/none; .*timm:hf-hub:"):
        built(module(model=f"timm:{tmp_path}/none"))
    with pytest.raises(GPartError, match="holds no timm model"):
        built(module(model=f"timm:{models['vit']}"))
    with pytest.raises(GPartError, match="holds no timm model"):
        built(module(model=f"timm:{tmp_path}"))


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("config.json", b"{not", "its config.json can't be read: Expecting property name"),
        ("config.json", b"\xff\xfe", "its config.json can't be read: "),
        ("config.json", b"[]", "the folder holds no timm model"),
        ("config.json", b"5", "the folder holds no timm model"),
        ("config.json", b'{"architecture": "none"}', "with 3 classes: Unknown model"),
        ("model.safetensors", b"damaged" * 9, "with 3 classes: .*header"),
        ("model.safetensors", None, "with 3 classes: No suitable checkpoints found"),
    ],
)
def test_a_damaged_folder_of_timm_is_refused(
    file: str, content: bytes | None, said: str, module: Any, models: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "timm"
    shutil.copytree(models["timm"].removeprefix("timm:"), folder)
    (folder / file).unlink() if content is None else (folder / file).write_bytes(content)
    with pytest.raises(GPartError, match=said) as caught:
        built(module(model=f"timm:{folder}"))
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("vit_tiny_patch16_224", GPartFileError),
        ("hf-hub:nobody/nothing", GPartFileError),
        ("local-dir:nowhere", GPartFileError),
        ("hf-hub:no name!", GPartError),
        ("nosuch:name", GPartError),
        ("vit_tiny_patch16_224.no_such_tag", GPartError),
    ],
)
def test_what_timm_says_of_a_name_is_raised_as_our_error(
    name: str, error: type[Exception], module: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(error, match=f"model='timm:{name}'") as caught:
        built(module(model=f"timm:{name}"))
    assert type(caught.value) is error
    assert caught.value.__cause__ is not None


def test_a_network_without_activation_checkpointing_is_refused() -> None:
    class Unable(PreTrainedModel):
        config_class = ViTConfig
        supports_gradient_checkpointing = False

    with pytest.raises(GPartError, match="gradient_checkpointing=True, but Unable does not support it: Unable"):
        checkpoint_activations(Unable(ViTConfig()))

    class Without(nn.Module):
        pass

    class Asserting(nn.Module):  # as timm's VGG
        def set_grad_checkpointing(self, enable: bool) -> None:
            assert not enable, "gradient checkpointing not supported"

    for network in (Without(), Asserting()):
        said = f"gradient_checkpointing=True, but timm's {type(network).__name__} does not support it"
        with pytest.raises(GPartError, match=said):
            checkpoint_activations(network)


def test_a_head_that_is_not_there_is_named(module: Any) -> None:
    with pytest.raises(GPartError, match=r"head=\['score'\] is no submodule of ViTFor.*\['vit', 'classifier'\]"):
        trainer().fit(module(head="score"), loader())


def test_a_network_with_other_outputs_is_refused(module: Any) -> None:
    own = module()
    own.model = nn.LSTM(28, 4)
    with pytest.raises(GPartError, match=r"logits or an object with .logits, got tuple"):
        own(torch.randn(3, 28, 28))
