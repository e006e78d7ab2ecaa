"""Causal language models that answer questions: trained on the answers' tokens, scored by what they generate.

Invariant: a step's gradient is that of the mean loss over all target tokens of its micro-batches on all ranks, however
these are cut. It knows nothing of the adapter.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import MeanMetric

from gpart.lightning_modules.common.activations import checkpoint_activations
from gpart.lightning_modules.common.optimizers import adamw_by_steps, check_schedule
from gpart.lightning_modules.mathematics.answers import check_verifier, extract_answer
from gpart.lightning_modules.mathematics.generation import Generator, judge, write_rows
from gpart.lightning_modules.mathematics.language_models import build, check_quantization

Batch = dict[str, Any]
IGNORED = -100
"""The label of a token that is no target, as Transformers has it."""
_TOKENS = 256.0
"""What a summed loss is divided by until the step's tokens are counted: near to a micro-batch's, for float16."""


class CausalLM(LightningModule):
    """A pretrained causal language model, trained by AdamW, that is asked questions at validation and test.

    A batch with ``labels`` gives a loss, the cross-entropy of each target token (-100 is none) given those before it:

        loss = sum over target tokens of -log p(token | before) / number of target tokens

    with sum and number taken over all micro-batches of an optimizer step, so that a token weighs the same in a short and
    in a long answer. Validation logs ``val/loss`` and ``val/perplexity`` = exp(loss), by tokens likewise.

    A batch with ``question`` is generated from, greedily: ``BENCHMARK/exact_match`` is the share of outputs whose marked
    final answer equals the reference's (:func:`~gpart.lightning_modules.mathematics.answers.exact_match`), ``verified_match`` what
    the library math-verify says, ``tokens_per_second`` the tokens generated. Every output is a line of
    ``generations/STAGE-BENCHMARK.jsonl`` in the logger's folder. Rows with ``repeated`` fill up a rank and do not count.

    Args:
        model: a model's name on the hub, a folder, a GGUF file (its weights are unpacked), or ``packaged:NAME``. Weights
            are float32, under ``bf16-true`` and ``16-true`` those.
        lr: learning rate.
        weight_decay: AdamW's, on all that is trained but biases and normalisation layers.
        warmup_ratio: part of the steps in which the learning rate rises from 0.
        schedule: ``"linear"``, ``"cosine"`` or ``"constant"`` after that.
        max_new_tokens: how long an output may be.
        stop: strings that end an output, beside the model's own end tokens; they are cut off.
        verify: also ask math-verify (the extra ``math``).
        gradient_checkpointing: recompute activations in the backward pass, for less memory (not re-entrant).
        quantization: ``"int8"`` or ``"int4"``: torchao keeps the linear layers' weights in so many bits (the head's not);
            int4 is for GPUs.
        compile: run the network through ``torch.compile``, which needs a C++ compiler and minutes at first.

    Raises:
        ValueError: if a setting is out of its range, or math-verify is asked for and missing.
    """

    def __init__(
        self,
        model: str = "packaged:smollm2",
        lr: float = 2e-4,
        weight_decay: float = 0.0,
        warmup_ratio: float = 0.03,
        schedule: str = "cosine",
        max_new_tokens: int = 512,
        stop: list[str] | None = None,
        verify: bool = True,
        gradient_checkpointing: bool = False,
        quantization: str | None = None,
        compile: bool = False,  # noqa: A002  # Lightning's and PEFT's word for it
    ) -> None:
        super().__init__()
        check_schedule(schedule, warmup_ratio)
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        check_quantization(quantization)
        if verify:
            check_verifier()
        self.save_hyperparameters()
        self.model: nn.Module | None = None
        self.val_loss = MeanMetric()
        self.scores = nn.ModuleDict()  # by stage, benchmark and kind; made when first seen
        self._generator: Generator | None = None
        self._window: Tensor | None = None  # target tokens since the last optimizer step
        self._started: set[Path] = set()

    def configure_model(self) -> None:
        """Loads the pretrained network, once, in the trainer's precision."""
        if self.model is None:
            model = build(self.hparams["model"], self.hparams["quantization"])
            if self.hparams["gradient_checkpointing"]:
                checkpoint_activations(model)
            self.model = model.train()
            if self.hparams["compile"]:
                self.model.compile()  # in place: names and keys stay; traced at the first call, adapter included

    def forward(self, batch: Batch) -> Any:
        """The network's output for a batch; ``logits`` has shape (batch, tokens, vocabulary)."""
        names = ("input_ids", "attention_mask", "position_ids")
        return self._network()(**{name: batch[name] for name in names if name in batch}, use_cache=False)

    def summed_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The sum of the target tokens' losses, float32, and their number."""
        targets = batch["labels"][:, 1:]
        chosen = targets != IGNORED
        # The targets' rows only: the whole in float32 is the largest tensor of a training step.
        logits = self(batch).logits[:, :-1][chosen].float()
        return nn.functional.cross_entropy(logits, targets[chosen], reduction="sum"), chosen.sum()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The summed loss of a micro-batch, to be divided by the step's tokens when all are known."""
        loss, tokens = self.summed_loss(batch)
        self._window = tokens if self._window is None else self._window + tokens
        self.log("train/loss", loss.detach() / tokens.clamp(min=1), prog_bar=True, batch_size=len(batch["labels"]))
        return loss / _TOKENS

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Turns the gradient of the summed losses into that of their mean over the step's target tokens."""
        if self._window is None:
            return
        tokens = cast("Tensor", self.all_gather(self._window)).sum().clamp(min=1)
        # Lightning has divided by the number of micro-batches, and the ranks' gradients are averaged.
        factor = _TOKENS * self.trainer.accumulate_grad_batches * self.trainer.world_size / tokens
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)
        self._window = None

    def on_train_epoch_start(self) -> None:
        """An interrupted window's gradients are gone, and so are its tokens."""
        self._window = None

    def on_validation_epoch_start(self) -> None:
        """Starts the stage's files anew."""
        self._started.clear()

    def on_test_epoch_start(self) -> None:
        """Starts the stage's files anew."""
        self._started.clear()

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """The loss by tokens, or the answers to questions."""
        if "labels" not in batch:
            self._answer(batch, "val")
            return
        loss, tokens = self.summed_loss(batch)
        self.val_loss.update(loss / tokens.clamp(min=1), weight=tokens)
        self.log("val/loss", self.val_loss, prog_bar=True, add_dataloader_idx=False, batch_size=len(batch["labels"]))

    def on_validation_epoch_end(self) -> None:
        """The perplexity, exp of the loss by tokens."""
        if self.val_loss.update_called:
            self.log("val/perplexity", self.val_loss.compute().exp(), sync_dist=True)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """The answers to questions."""
        self._answer(batch, "test")

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, list[Any]]:
        """Each question's output and the final answer marked in it."""
        outputs = self.generate(batch)
        columns: dict[str, list[Any]] = {name: batch[name] for name in ("idx", "question") if name in batch}
        return {**columns, "output": outputs, "answer": [extract_answer(output) for output in outputs]}

    def generate(self, batch: Batch) -> list[str]:
        """The most likely continuation of each prompt, without the stop string that ended it."""
        return self._generate(batch)[0]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW; the schedule goes by steps."""
        return adamw_by_steps(self, self._network(), head=None)

    def _network(self) -> nn.Module:
        if self.model is None:
            raise ValueError("the network is not built yet: call configure_model() first")
        return self.model

    def _generate(self, batch: Batch) -> tuple[list[str], int, float]:
        if self._generator is None:
            hparams = self.hparams
            self._generator = Generator(hparams["model"], hparams["max_new_tokens"], tuple(hparams["stop"] or ()))
        return self._generator(self._network(), batch["input_ids"], batch["attention_mask"])

    def _answer(self, batch: Batch, stage: str) -> None:
        outputs, tokens, seconds = self._generate(batch)
        rows = judge(batch, outputs, self.hparams["verify"])
        counted = [row for row, repeated in zip(rows, batch["repeated"], strict=True) if not repeated]
        benchmark = batch["benchmark"][0]
        prefix = f"{stage}/{benchmark}"
        for kind in ("exact_match", "verified_match") if self.hparams["verify"] else ("exact_match",):
            name = f"{stage}_{benchmark}_{kind}"
            if name not in self.scores:
                self.scores[name] = MeanMetric().to(self.device)
            score = cast("MeanMetric", self.scores[name])
            for row in counted:
                score.update(float(row[kind]))
            self.log(
                f"{prefix}/{kind}",
                score,
                prog_bar=kind == "exact_match",
                add_dataloader_idx=False,
                batch_size=1,
                metric_attribute=f"scores.{name}",  # Lightning looks for metrics once, before this one was made
            )
        self.log(
            f"{prefix}/tokens_per_second",
            tokens / max(seconds, 1e-9),
            prog_bar=True,
            add_dataloader_idx=False,
            batch_size=len(outputs),
            sync_dist=True,
        )
        if not self.trainer.sanity_checking:
            write_rows(self._file(stage, benchmark), counted, self._started)

    def _file(self, stage: str, benchmark: str) -> Path:
        folder = Path(self.trainer.log_dir or self.trainer.default_root_dir) / "generations"
        rank = "" if self.trainer.world_size == 1 else f".rank{self.trainer.global_rank}"
        return folder / f"{stage}-{benchmark}.jsonl{rank}"
