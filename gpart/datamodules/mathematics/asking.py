"""What the DataModules of questions with worked answers share: how rows become parts, and parts become loaders.

Invariant: a row is either trained on or held out, and the rows held out are the same whatever ``train_size`` is.
"""

from __future__ import annotations

from collections.abc import Sequence

from datasets import Dataset
from lightning.pytorch.utilities import rank_zero_info
from torchdata.stateful_dataloader import StatefulDataLoader

from gpart.datamodules.common.seeded import SeededDataModule, check_loading
from gpart.datamodules.common.splits import chosen
from gpart.datamodules.common.text import Keyed
from gpart.datamodules.mathematics.conversations import Conversations, Report
from gpart.datamodules.mathematics.loss_batches import LossCollate
from gpart.datamodules.mathematics.packing import PackedCollate, Packs, pack
from gpart.datamodules.mathematics.questions import Question, QuestionCollate, Questions, QuestionSampler
from gpart.errors import GPartError

PROMPT = "Question: {question}\nAnswer:"


class AskingDataModule(SeededDataModule):
    """Has the loaders. A subclass saves the hyperparameters that are read here, and fills ``parts`` and ``questions``."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: dict[str, Dataset] = {}
        """``train`` and ``val``, tokenised."""
        self.questions: dict[str, list[Question]] = {}
        """By the name of the benchmark."""
        self.report: Report | None = None
        self._own: Conversations | None = None
        self._rows: list[list[int]] | None = None

    @property
    def tested(self) -> list[str]:
        """The names of the questions that ``test`` asks, in their order."""
        raise NotImplementedError

    @property
    def predicted(self) -> list[str]:
        """The names of the questions that ``predict`` asks."""
        raise NotImplementedError

    @property
    def validated(self) -> str:
        """The name of the questions that are asked in validation."""
        return "held_out"

    def train_dataloader(self) -> StatefulDataLoader:
        """The training set without the rows held out, in random order, in batches of similar length or packed."""
        examples, pad, size = self._split_of("train"), self.conversations().pad, self.hparams["batch_size"]
        if self._rows is not None:
            packs = Packs(examples, self._rows)
            return self.loader(Keyed(packs), PackedCollate(pad), size, self.sampler(len(packs)))
        return self.loader(Keyed(examples), LossCollate(pad), size, self.grouped_sampler(examples["length"][:]))

    def val_dataloader(self) -> list[StatefulDataLoader]:
        """The rows held out, for the loss. With ``val_questions``, a second loader asks some of them as questions."""
        examples, loss = self._split_of("val"), LossCollate(self.conversations().pad)
        order = self.scoring_order(examples["length"][:])
        loaders = [self.loader(Keyed(examples), loss, self.hparams["batch_size"], order)]
        if self.hparams["val_questions"]:
            loaders.append(self._ask([self.validated]))
        return loaders

    def test_dataloader(self) -> list[StatefulDataLoader]:
        """One loader for the questions of each benchmark, in their order."""
        return [self._ask([name]) for name in self.tested]

    def predict_dataloader(self) -> StatefulDataLoader:
        """The questions that have no references, or those of all benchmarks."""
        return self._ask(self.predicted)

    def conversations(self) -> Conversations:
        """Makes prompts and examples for the model."""
        if self._own is None:
            names = ("prompt", "chat_template", "completion_only_loss")
            self._own = Conversations(self.base_model(), *(self.hparams[name] for name in names))
        return self._own

    def divide(self, data: Dataset, place: str, held: set[int]) -> list[int]:
        """Makes the parts ``train`` and ``val`` of a data set, without the rows that have nothing to learn.

        Args:
            data: the rows, with columns of questions and answers.
            place: the data set's name, for messages.
            held: the numbers of the rows held out.

        Returns:
            The numbers of the rows in ``val``.

        Raises:
            GPartError: if no row is left for a part, or ``train_size`` asks for more than there are.
        """
        examples, self.report = self.conversations().encode(data, place, self.hparams["max_length"])
        if self.report.rows != len(examples) or self.report.truncated:
            rank_zero_info(f"{place}: {self.report}")
        numbers = examples["idx"][:]
        parts: dict[str, list[int]] = {"train": [], "val": []}
        for at, number in enumerate(numbers):
            parts["val" if number in held else "train"].append(at)
        for part, found in parts.items():
            if not found:
                raise GPartError(f"{place} leaves no row for {part}: {self.report}")
        asked, size = [numbers[at] for at in parts["val"]], self.hparams["train_size"]
        if size is not None:
            row_of = {numbers[at]: at for at in parts["train"]}
            parts["train"] = [row_of[at] for at in self.some(list(row_of), size, "train_size", "rows not held out")]
        self.parts = {part: examples.select(found) for part, found in parts.items()}
        return asked

    def pack_rows(self) -> None:
        """Finds what goes into each row of ``packing``, once."""
        if self.hparams["packing"] and self._rows is None:
            self._rows = pack(self.parts["train"]["length"][:], self.hparams["max_length"])

    def some(self, numbers: list[int], size: int, setting: str, what: str) -> list[int]:
        """Chooses some of the rows, by the seed.

        Raises:
            GPartError: if the setting asks for none, or for more than there are.
        """
        if not 1 <= size <= len(numbers):
            raise GPartError(f"{setting} must be from 1 to the {len(numbers)} {what}, got {size}")
        places = chosen([(0, number) for number in numbers], range(len(numbers)), size, self.hparams["seed"])
        return [numbers[at] for at in places]

    def _ask(self, names: Sequence[str]) -> StatefulDataLoader:
        if missing := [name for name in names if name not in self.questions]:
            raise GPartError(
                f"no questions {missing} among {sorted(self.questions)}: setup() has not run for this stage"
            )
        questions = Questions([one for name in names for one in self.questions[name]])
        sampler, size = QuestionSampler(len(questions), *self.place), self.hparams["eval_batch_size"]
        return self.loader(questions, QuestionCollate(self.conversations().pad), size, sampler)

    def _split_of(self, part: str) -> Dataset:
        if part not in self.parts:
            raise GPartError(f"no part {part!r} among {sorted(self.parts)}: setup() has not run for this stage")
        return self.parts[part]


def check_asking(
    prompt: str, chat_template: bool, val_questions: int, test_questions: int | None, num_workers: int, **sizes: int
) -> None:
    """Checks the settings that these DataModules share, before any data is read.

    Args:
        prompt: must hold ``{question}``.
        chat_template: goes with the default prompt only.
        val_questions: must be 0 or more.
        test_questions: must be 1 or more, or None.
        num_workers: must be 0 or more.
        sizes: settings that must be 1 or more, by name.

    Raises:
        GPartError: if a setting is out of its range.
    """
    if "{question}" not in prompt:
        raise GPartError(f"prompt must have {{question}} in it, got {prompt!r}")
    if chat_template and prompt != PROMPT:
        raise GPartError(f"chat_template=True makes the prompt, so there can be no other, got {prompt!r}")
    check_loading(num_workers, **sizes)
    if val_questions < 0 or (test_questions is not None and test_questions < 1):
        raise GPartError(
            f"val_questions must be 0 or more and test_questions 1 or more, got {val_questions} and {test_questions}"
        )
