"""Every method's folder, written when fit ends and read onto another base: the same outputs, to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_bases import bert_folder, classifier
from torch import Tensor, nn
from torch.utils.data import DataLoader

from gpart import GPartError, GPartFileError, load_adapter
from gpart.callbacks import BitFit, FullFineTuning, LinearProbe, PartialFineTuning, PeftCallback, load_method
from gpart.serialization.folder import read_trained

IDS = torch.arange(1, 13).reshape(2, 6)
BASELINES = {
    "bitfit": lambda **more: BitFit(["classifier"], **more),
    "probe": lambda **more: LinearProbe(["classifier"], **more),
    "partial": lambda **more: PartialFineTuning(["query"], ["classifier"], **more),
    "full": lambda **more: FullFineTuning(**more),
}
PEFTS: dict[str, dict[str, Any]] = {
    "LORA": {"r": 2},
    "VERA": {"r": 4},
    "FOURIERFT": {"n_frequency": 5},
    "IA3": {"feedforward_modules": []},
    # PEFT's files have other names for these than the network has.
    "LORA as DoRA": {"r": 2, "use_dora": True},
    "VBLORA": {"r": 2, "num_vectors": 8, "vector_length": 8},
    "SHIRA": {"r": 1},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bert_folder(tmp_path_factory.mktemp("shared") / "base")


class Task(LightningModule):
    """Two steps an epoch, of which the first epoch is the best."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.model = network.train()

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        self.log("score", -float(self.current_epoch), on_epoch=True, on_step=False)
        loss: Tensor = self.model(input_ids=batch, labels=torch.tensor([0, 1])).loss
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW([value for value in self.parameters() if value.requires_grad], lr=0.05)


def fit(base: Path, method: Any, out: Path, trainer: Any, monitor: str | None = "score") -> nn.Module:
    """The network of the best epoch if there is a score, else of the last, in evaluation mode."""
    torch.manual_seed(0)
    states = []

    class Watched(ModelCheckpoint):
        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            states.append({name: value.clone() for name, value in module.model.state_dict().items()})
            super().on_train_epoch_end(trainer, module)

    keeper = Watched(out / "kept", monitor=monitor, mode="max")
    task = Task(classifier(base, 2))
    trainer(method, keeper, enable_checkpointing=True, max_epochs=3).fit(task, DataLoader(IDS.repeat(2, 1), 2))
    task.model.load_state_dict(states[0 if monitor else -1])
    return task.model.eval()


def outputs(network: nn.Module) -> Tensor:
    with torch.no_grad():
        logits: Tensor = network.eval()(input_ids=IDS).logits
    return logits


@pytest.mark.parametrize(("name", "monitor"), [*((name, "score") for name in BASELINES), ("bitfit", None)])
def test_a_baselines_folder_gives_the_same_outputs(
    name: str, monitor: str | None, base: Path, tmp_path: Path, lit_trainer: Any
) -> None:
    expected = fit(base, BASELINES[name](save_folder=str(tmp_path / "saved")), tmp_path, lit_trainer, monitor)
    fresh = classifier(base, 2)
    assert not torch.equal(outputs(fresh), outputs(expected))
    method = load_method(fresh, str(tmp_path / "saved"))
    assert type(method).__name__ == type(BASELINES[name]()).__name__
    assert torch.equal(outputs(fresh), outputs(expected))
    trained = {name for name, value in fresh.named_parameters() if value.requires_grad}
    described, tensors = read_trained(tmp_path / "saved")
    assert trained == set(described["trained"])
    assert trained <= set(tensors)
    score = {"step": 2, "monitor": "score", "value": 0.0} if monitor else {"step": 6}
    assert described["about"]["score"] == score
    assert described["about"]["model_class"] == "BertForSequenceClassification"
    # A callback starts from it, once: what is trained from there on is not overwritten.
    again = BASELINES[name](adapter=str(tmp_path / "saved"))
    module = Task(classifier(base, 2))
    trainer = lit_trainer(again, max_epochs=1)
    trainer.fit(module, DataLoader(IDS, 2))
    trained_on = outputs(module.model)
    again.apply(module.model)
    assert torch.equal(outputs(module.model), trained_on)
    assert not torch.equal(trained_on, outputs(expected))


def test_a_folder_that_does_not_fit_leaves_the_network(base: Path, tmp_path: Path, lit_trainer: Any) -> None:
    fit(base, BASELINES["bitfit"](save_folder=str(tmp_path / "saved")), tmp_path, lit_trainer)
    other = classifier(base, 2)
    with torch.no_grad():
        other.bert.embeddings.word_embeddings.weight.add_(1)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(GPartError, match=r"saved was trained on base .*, this model has fingerprint"):
        load_method(other, str(tmp_path / "saved"))
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    assert all(value.requires_grad for value in other.parameters())
    with pytest.raises(GPartError, match="saved was trained by BitFit, this run uses LinearProbe"):
        LinearProbe(["classifier"], adapter=str(tmp_path / "saved")).apply(classifier(base, 2))
    with pytest.raises(GPartError, match=r"holds what BitFit has trained, not an adapter of GPart: .*load_method"):
        load_adapter(classifier(base, 2), tmp_path / "saved")
    file = tmp_path / "saved" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(GPartError, match="was changed or truncated"):
        load_method(classifier(base, 2), str(tmp_path / "saved"))


@pytest.mark.parametrize(("kind", "monitor"), [*((kind, "score") for kind in PEFTS), ("LORA", None)])
def test_plain_peft_reads_the_folder_of_its_methods(
    kind: str, monitor: str | None, base: Path, tmp_path: Path, lit_trainer: Any
) -> None:
    def method(**more: Any) -> PeftCallback:
        return PeftCallback(kind.split(maxsplit=1)[0], ["query", "value"], ["classifier"], PEFTS[kind], **more)

    expected = fit(base, method(save_folder=str(tmp_path / "saved")), tmp_path, lit_trainer, monitor)
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    config = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["classifier"]
    assert config["base_model_name_or_path"] == str(base)
    plain = PeftModel.from_pretrained(classifier(base, 2), str(tmp_path / "saved"))
    assert torch.equal(outputs(plain), outputs(expected))
    assert not torch.equal(outputs(plain), outputs(classifier(base, 2)))
    # And the callback itself starts from it.
    network = classifier(base, 2)
    method(adapter=str(tmp_path / "saved")).apply(network)
    assert torch.equal(outputs(network), outputs(expected))


def test_the_callback_reads_pefts_own_folder_with_biases_and_a_head(base: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    settings = {"r": 2, "bias": "all", "init_lora_weights": False}
    config = LoraConfig(target_modules=["query", "value"], modules_to_save=["classifier"], **settings)
    theirs = get_peft_model(classifier(base, 2), config)
    with torch.no_grad():
        for value in theirs.parameters():
            if value.requires_grad:
                value.add_(0.1)
    theirs.save_pretrained(str(tmp_path / "saved"))
    network = classifier(base, 2)
    PeftCallback("LORA", ["query", "value"], ["classifier"], settings, adapter=str(tmp_path / "saved")).apply(network)
    assert torch.equal(outputs(network), outputs(theirs))


def test_pefts_folder_that_does_not_fit(base: Path, tmp_path: Path, lit_trainer: Any) -> None:
    saved = str(tmp_path / "saved")
    fit(base, PeftCallback("LORA", ["query"], ["classifier"], {"r": 2}, save_folder=saved), tmp_path, lit_trainer)
    with pytest.raises(GPartError, match="different settings: r is 2 there, 3 here"):
        PeftCallback("LORA", ["query"], ["classifier"], {"r": 3}, adapter=saved).apply(classifier(base, 2))
    with pytest.raises(
        GPartError, match=r"of another shape \['base_model.model.classifier.bias has shape \[2\], here \[3\]"
    ):
        PeftCallback("LORA", ["query"], ["classifier"], {"r": 2}, adapter=saved).apply(classifier(base, 3))
    with pytest.raises(GPartFileError, match=r"no adapter of PEFT at .*base: there is no file adapter_config.json"):
        PeftCallback("LORA", ["query"], ["classifier"], {"r": 2}, adapter=str(base)).apply(classifier(base, 2))


def test_buffers_that_training_moved_are_in_pefts_folder(
    tmp_path: Path, lit_class: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    module = lit_class()
    method = PeftCallback("LORA", ["0"], ["3"], {"r": 2}, save_folder=str(tmp_path / "saved"))
    lit_trainer(method).fit(module, lit_loader())
    plain = PeftModel.from_pretrained(lit_class().net, str(tmp_path / "saved")).eval()
    inputs = torch.randn(4, 8)
    with torch.no_grad():
        assert torch.equal(plain(inputs), module.net.eval()(inputs))
