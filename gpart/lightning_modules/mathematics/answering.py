"""Asks a causal language model questions: in validation, test and predict, by Transformers or by vLLM.

Invariant: an output is judged, counted and written in the same way whatever generated it. A question that only fills up
the share of a rank does not count.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from lightning.pytorch import LightningModule
from torch import nn
from torchmetrics import MeanMetric

from gpart.errors import GPartError
from gpart.lightning_modules.common.row_columns import beside
from gpart.lightning_modules.mathematics.answers import extract_answer
from gpart.lightning_modules.mathematics.generation import Generator, judge, most_tokens, write_rows
from gpart.lightning_modules.mathematics.vllm_engine import Answered, answer_all, batches_of, check_processes

Batch = dict[str, Any]


class Answering(LightningModule):
    """The half of :class:`CausalLM` that generates and scores. Its hyperparameters are that class's."""

    final_answer = staticmethod(extract_answer)
    """Finds what an answer is scored by; a DataModule asks for it, to name a reference without one before the first step."""

    def __init__(self) -> None:
        super().__init__()
        self.model: nn.Module | None = None
        self.scores = nn.ModuleDict()  # by stage, benchmark and kind; each is made when it is first needed
        self._generator: Generator | None = None
        self._answered: Answered | None = None  # by vLLM
        self._started: set[Path] = set()

    def on_test_start(self) -> None:
        """Hands all questions to vLLM, if that is the engine."""
        self._hand_over(self.trainer.test_dataloaders, self.trainer.num_test_batches)

    def on_predict_start(self) -> None:
        """Hands all questions to vLLM, if that is the engine."""
        self._hand_over(self.trainer.predict_dataloaders, self.trainer.num_predict_batches)

    def on_validation_epoch_start(self) -> None:
        """Makes the validation overwrite its files of generations."""
        self._started.clear()

    def on_test_epoch_start(self) -> None:
        """Makes the test overwrite its files of generations."""
        self._started.clear()

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Generates and scores the answers to questions."""
        self._answer(batch, "test")

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, list[Any]]:
        """Returns the output for each question and the final answer marked in it, beside what its row has.

        A question that only fills up the share of a rank is left out.
        """
        outputs = self._outputs(batch)[0]
        asked: dict[str, Any] = {name: batch[name] for name in ("idx", "question", "rows") if name in batch}
        found = beside(asked, {"output": outputs, "answer": [extract_answer(output) for output in outputs]})
        repeated = batch.get("repeated", [False] * len(outputs))
        return {
            name: [value for value, again in zip(column, repeated, strict=True) if not again]
            for name, column in found.items()
        }

    def generate(self, batch: Batch) -> list[str]:
        """Returns the greedy continuation of each prompt by Transformers, without the stop string that ended it."""
        return self._generate(batch)[0]

    def _network(self) -> nn.Module:
        if self.model is None:
            raise GPartError("the network is not built yet: call configure_model() first")
        return self.model

    def _own_generator(self) -> Generator:
        if self._generator is None:
            self._generator = Generator(self.hparams["model"], tuple(self.hparams["stop"] or ()))
        return self._generator

    def _generate(self, batch: Batch) -> tuple[list[str], int, float]:
        limit = most_tokens(self.hparams["max_new_tokens"], batch.get("benchmark", ()))
        return self._own_generator()(self._network(), batch["input_ids"], batch["attention_mask"], limit)

    def _hand_over(self, loaders: Any, limits: list[int | float]) -> None:
        self._answered = None
        if self.hparams["engine"] == "vllm":
            check_processes(self.trainer.world_size)
            self._answered = answer_all(
                self,
                self._network(),
                batches_of(loaders, limits),
                self.hparams["max_new_tokens"],
                self._own_generator(),
                self.hparams["engine_settings"],
            )

    def _outputs(self, batch: Batch) -> tuple[list[str], int, float]:
        if self.hparams["engine"] == "transformers":
            return self._generate(batch)
        if self._answered is None:
            raise GPartError(
                "engine='vllm' is given all questions when trainer.test or trainer.predict starts, and this is a batch"
                f" of {len(batch['input_ids'])} alone: generate(batch) answers it by Transformers"
            )
        return self._answered.of(batch, self.hparams["max_new_tokens"])

    def _answer(self, batch: Batch, stage: str) -> None:
        outputs, tokens, seconds = self._generate(batch) if stage == "val" else self._outputs(batch)
        rows = judge(batch, outputs, self.hparams["verify"])
        counted = [row for row, repeated in zip(rows, batch["repeated"], strict=True) if not repeated]
        benchmark = batch["benchmark"][0]
        prefix = stage if benchmark == stage else f"{stage}/{benchmark}"  # one's own test part is called test
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
                metric_attribute=f"scores.{name}",  # Lightning has searched for metrics before this one was made
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
