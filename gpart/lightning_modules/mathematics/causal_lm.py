"""Causal language models that answer questions: trained on the tokens of answers, scored by what they generate.

Invariant: the gradient of an optimizer step is that of the mean loss over all target tokens, in all its micro-batches
and on all ranks. How the tokens are distributed over these makes no difference. The module knows nothing of an adapter.
"""

from __future__ import annotations

from typing import Any, cast

from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import MeanMetric

from gpart.errors import GPartError
from gpart.lightning_modules.common.activations import checkpoint_activations
from gpart.lightning_modules.common.optimizers import Schedule, adamw_by_steps, check_schedule
from gpart.lightning_modules.mathematics.answering import Answering, Batch
from gpart.lightning_modules.mathematics.answers import check_verifier
from gpart.lightning_modules.mathematics.language_models import Quantization, build, check_quantization
from gpart.lightning_modules.mathematics.vllm_engine import Engine, check_engine, check_processes

IGNORED = -100
"""The label of a token that is no target, as in Transformers."""
_TOKENS = 256.0
"""A summed loss is divided by this until the number of the step's tokens is known. It is close to the number of tokens
in a micro-batch, so that the loss stays in the range of float16."""


class CausalLM(Answering):
    """A pretrained causal language model, trained by AdamW. At validation and test, it is asked questions.

    A batch with ``labels`` gives a loss: the cross-entropy of each target token, given the tokens before it. The label
    -100 marks a token that is no target.

        loss = sum over target tokens of -log p(token | tokens before) / number of target tokens

    The sum and the number are taken over all micro-batches of an optimizer step, so that a token has the same weight in
    a short and in a long answer. Validation logs ``val/loss``, which is averaged over tokens in the same way, and
    ``val/perplexity`` = exp(loss).

    A batch with ``question`` is answered by greedy generation, which logs these scores under ``STAGE/BENCHMARK/``
    (under ``test/`` for one's own test part):

    - ``exact_match``: the share of outputs whose marked final answer equals the reference's, see
      :func:`~gpart.lightning_modules.mathematics.answers.exact_match`.
    - ``verified_match``: the share of outputs that the library math-verify judges as equal to the reference.
    - ``tokens_per_second``: the number of tokens generated per second.

    Every output is a line of ``generations/STAGE-BENCHMARK.jsonl`` in the logger's folder. Rows with ``repeated`` only
    fill up the share of a rank and do not count.

    Args:
        model: a model's name on the hub, a folder, a GGUF file (its weights are dequantised), or ``packaged:NAME``. The
            weights are float32; with the precisions ``bf16-true`` and ``16-true`` they are bfloat16 or float16.
        lr: the learning rate.
        weight_decay: AdamW's weight decay. Biases and normalisation layers have none.
        warmup_ratio: the fraction of the steps in which the learning rate rises from 0.
        schedule: the schedule of the learning rate after the warm-up.
        max_new_tokens: the largest number of tokens in an output; or one for each benchmark, such as
            ``{gsm8k: 1024, math: 2048}``. Other questions then have the largest of these.
        stop: strings that end an output, besides the model's own end tokens. They are cut off.
        verify: also score with math-verify (the extra ``math``).
        gradient_checkpointing: recompute activations in the backward pass, which takes less memory (not re-entrant).
        quantization: let torchao keep the weights of the linear layers, except the head, in 8 or 4 bits. ``int4`` is
            for GPUs.
        compile: run the network through ``torch.compile``. This needs a C++ compiler, and takes minutes at first.
        engine: what answers in test and predict. ``vllm`` (the extra of that name; on one device, and not run here) is
            handed all questions at the start, with the merged weights in a temporary folder, whatever the method.
            Validation is by Transformers, since the weights would be loaded anew each time.
        engine_settings: further arguments of ``vllm.LLM``, such as ``{gpu_memory_utilization: 0.8}``.

    Raises:
        GPartError: if a setting is out of its range, or a package that it needs is not installed.
    """

    def __init__(
        self,
        model: str = "packaged:smollm2",
        lr: float = 2e-4,
        weight_decay: float = 0.0,
        warmup_ratio: float = 0.03,
        schedule: Schedule = "cosine",
        max_new_tokens: int | dict[str, int] = 512,
        stop: list[str] | None = None,
        verify: bool = True,
        gradient_checkpointing: bool = False,
        quantization: Quantization | None = None,
        compile: bool = False,  # noqa: A002  # the name that users know from torch.compile
        engine: Engine = "transformers",
        engine_settings: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_schedule(schedule, warmup_ratio)
        limits = max_new_tokens if isinstance(max_new_tokens, dict) else {"": max_new_tokens}
        if min(limits.values(), default=0) < 1:
            raise GPartError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        check_quantization(quantization)
        check_engine(engine, engine_settings, quantization)
        if verify:
            check_verifier()
        self.save_hyperparameters()
        self.val_loss = MeanMetric()
        self._window: Tensor | None = None  # target tokens since the last optimizer step

    def configure_model(self) -> None:
        """Loads the pretrained network, once, in the trainer's precision.

        Raises:
            GPartFileError: if the model is not there.
            GPartError: if it can't be read, or a setting does not fit it.
        """
        if self.model is None:
            model = build(self.hparams["model"], self.hparams["quantization"])
            if self.hparams["gradient_checkpointing"]:
                checkpoint_activations(model)
            self.model = model.train()
            if self.hparams["compile"]:
                self.model.compile()  # in place, so that names stay; it is traced at the first call, with the adapter

    def forward(self, batch: Batch) -> Any:
        """The network's output for a batch. ``logits`` has the shape (batch, tokens, vocabulary)."""
        names = ("input_ids", "attention_mask", "position_ids")
        return self._network()(**{name: batch[name] for name in names if name in batch}, use_cache=False)

    def summed_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns the sum of the target tokens' losses, in float32, and the number of target tokens."""
        targets = batch["labels"][:, 1:]
        chosen = targets != IGNORED
        # Only the logits of target tokens: in float32, all of them would be the largest tensor of a training step.
        logits = self(batch).logits[:, :-1][chosen].float()
        return nn.functional.cross_entropy(logits, targets[chosen], reduction="sum"), chosen.sum()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Returns the summed loss of a micro-batch. The gradient is divided by the step's tokens in the end."""
        loss, tokens = self.summed_loss(batch)
        self._window = tokens if self._window is None else self._window + tokens
        self.log("train/loss", loss.detach() / tokens.clamp(min=1), prog_bar=True, batch_size=len(batch["labels"]))
        return loss / _TOKENS

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Turns the gradient of the summed losses into that of the mean loss over the step's target tokens."""
        if self._window is None:
            return
        tokens = cast("Tensor", self.all_gather(self._window)).sum().clamp(min=1)
        # Lightning has divided the loss by the number of micro-batches, and the ranks' gradients have been averaged.
        factor = _TOKENS * self.trainer.accumulate_grad_batches * self.trainer.world_size / tokens
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)
        self._window = None

    def on_fit_start(self) -> None:
        """Checks that the engine can answer in the test that may follow."""
        if self.hparams["engine"] == "vllm":
            check_processes(self.trainer.world_size)

    def on_train_epoch_start(self) -> None:
        """Forgets the tokens of micro-batches without an optimizer step, since their gradients are gone too."""
        self._window = None

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Measures the loss, or generates and scores the answers to questions."""
        if "labels" not in batch:
            self._answer(batch, "val")
            return
        loss, tokens = self.summed_loss(batch)
        self.val_loss.update(loss / tokens.clamp(min=1), weight=tokens)
        self.log("val/loss", self.val_loss, prog_bar=True, add_dataloader_idx=False, batch_size=len(batch["labels"]))

    def on_validation_epoch_end(self) -> None:
        """Logs the perplexity, which is exp(loss)."""
        if self.val_loss.update_called:
            self.log("val/perplexity", self.val_loss.compute().exp(), sync_dist=True)

    def adapter_facts(self) -> dict[str, Any]:
        """What an adapter's file should say: the base's name."""
        return {"base": self.hparams["model"]}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Returns AdamW and the scheduler."""
        return adamw_by_steps(self, self._network(), head=())
