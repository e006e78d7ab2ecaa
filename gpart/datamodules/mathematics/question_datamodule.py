"""A user's own questions with worked answers: from a file to batches.

Invariant: every row of every part is read and checked before the first step. Which part a row is in depends on its
question and the seed alone.
"""

from __future__ import annotations

from datasets import Dataset
from lightning_utilities.core.rank_zero import rank_zero_info

from gpart.datamodules.common.own_files import read_parts
from gpart.datamodules.common.own_rows import NO_TEST, BadRows, Policy, Row
from gpart.datamodules.common.splits import check_held_out
from gpart.datamodules.mathematics.asking import PROMPT, AskingDataModule, check_asking
from gpart.datamodules.mathematics.own_questions import Judge, Usable, cut, find_columns, usable
from gpart.datamodules.mathematics.questions import OwnQuestion, Question
from gpart.errors import GPartError


class QuestionDataModule(AskingDataModule):
    r"""Your own questions with worked answers, for any Hugging Face causal language model.

    - ``fit`` trains on the rows that are in no other part; ``validate`` uses the rows held out, which select the
      checkpoint.
    - ``test`` asks the questions of the test part: ``test_path``, a part called so, or ``test_held_out``.
    - ``predict`` asks every question of ``path``; it needs no answers.

    The batches are those of :class:`MathDataModule`, which has the benchmarks. The benchmark of a question is called
    ``test``, ``held_out`` or ``own``.

    A row has a question, and an answer that ends with its final answer, as in ``"3 + 4 = 7. #### 7"``; ``The answer is:
    7`` and ``\boxed{7}`` will do too. The final answers are what outputs are scored by.

    Args:
        path: a JSON-lines, CSV, TSV or Parquet file in UTF-8; a folder of these; or a data set's name on the hub. Files
            and splits may be called train, val and test.
        model: the model whose tokenizer is used; the default is the LightningModule's.
        test_path: the questions of the test, in a file as ``path``.
        question: the column of questions; the default is the only one called question, query, problem, prompt or
            instruction.
        answer: the column of answers; the default is the only one called answer, response, solution, completion or
            output.
        final_answers: every answer must have a final answer, if the LightningModule looks for one. Without, the loss
            alone measures, and ``test`` is refused.
        held_out: the fraction of the questions that selects the checkpoint; the default is a tenth, but enough
            to choose by: 50, of fewer than 200 a quarter. Less is refused.
        test_held_out: the fraction of the questions that is the test part; the default is none.
        on_bad_row: ``error`` stops at the first row that can't be used; ``skip`` leaves them out and counts them.
        prompt: the text in front of an answer, with ``{question}`` in it, as of :class:`MathDataModule`.
        chat_template: take the prompt from the tokenizer's chat template instead.
        batch_size: examples (with ``packing``: rows) per step and device, in training and for the loss in validation.
        eval_batch_size: questions per step and device.
        max_length: the number of tokens at which an example is cut; with ``packing``, the length of a row.
        train_size: train on this many of the rows only. A smaller number takes a subset of what a larger one takes.
        completion_only_loss: take the answer's tokens alone as targets of the loss, and not the prompt's.
        val_questions: how many of the questions held out are also asked at each validation.
        test_questions: how many questions of the test part are asked; the default is all.
        packing: put several examples into one row.
        seed: the seed of the parts. Together with the seed of ``seed_everything``, if it is called, it also gives the
            order of the training rows.
        num_workers: the number of worker processes of each data loader.

    Raises:
        GPartError: if a setting is out of its range.
    """

    def __init__(
        self,
        path: str,
        model: str | None = None,
        test_path: str | None = None,
        question: str | None = None,
        answer: str | None = None,
        final_answers: bool = True,
        held_out: float | None = None,
        test_held_out: float | None = None,
        on_bad_row: Policy = "error",
        prompt: str = PROMPT,
        chat_template: bool = False,
        batch_size: int = 8,
        eval_batch_size: int = 16,
        max_length: int = 1024,
        train_size: int | None = None,
        completion_only_loss: bool = True,
        val_questions: int = 0,
        test_questions: int | None = None,
        packing: bool = False,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        for fraction in (held_out, test_held_out):
            if fraction is not None:
                check_held_out(fraction)
        if test_path is not None and test_held_out is not None:
            raise GPartError(f"test_path={test_path} is the test part, so test_held_out={test_held_out} can't be too")
        if val_questions and not final_answers:
            raise GPartError(f"val_questions={val_questions} are scored by final answers, and final_answers is false")
        BadRows(on_bad_row)  # which checks it
        sizes = {"batch_size": batch_size, "eval_batch_size": eval_batch_size, "max_length": max_length}
        check_asking(prompt, chat_template, val_questions, test_questions, num_workers, **sizes)
        # Plain types, since a checkpoint holds the hyperparameters and torch.load(weights_only=True) refuses a Path.
        path = str(path)
        model, test_path = (None if given is None else str(given) for given in (model, test_path))
        self.save_hyperparameters()

    @property
    def tested(self) -> list[str]:
        """The test part."""
        return ["test"]

    @property
    def predicted(self) -> list[str]:
        """All questions of ``path``."""
        return ["own"]

    def prepare_data(self) -> None:
        """Downloads the model's tokenizer. Only one process does this."""
        self.conversations()

    def setup(self, stage: str) -> None:
        """Reads and checks all rows that the stage needs, unless that is done.

        Raises:
            GPartFileError: if there is no such file, or the model is not there.
            GPartError: if a row is bad, the columns can't be told, or a setting asks for more rows than there are.
        """
        stage = str(getattr(stage, "value", stage))
        bad = BadRows(self.hparams["on_bad_row"])
        if stage == "predict":
            if "own" not in self.questions:
                self.questions["own"] = self._asked(self._usable(self._parts(bad), bad, answered=False), "own")
        elif "val" not in self.parts and not (stage == "test" and "test" in self.questions):
            self._read(stage, bad)
        bad.tell()
        if stage == "fit":
            self.pack_rows()
        if stage == "test":
            self.check_test()

    def check_test(self) -> None:
        """Checks that the questions which were read have a test part that can be scored.

        Raises:
            GPartError: if not.
        """
        if not self.hparams["final_answers"]:
            raise GPartError("test scores final answers, and final_answers is false")
        if "test" not in self.questions:
            raise GPartError(NO_TEST.format(self.hparams["path"]))

    def _read(self, stage: str, bad: BadRows) -> None:
        """Reads all parts, also where the stage needs one only: none may have a question of another one."""
        settings = self.hparams
        parts = {name: self._usable({name: rows}, bad) for name, rows in self._parts(bad).items()}
        parts = cut(parts, settings["held_out"], settings["test_held_out"], settings["seed"], bad)
        rank_zero_info(f"{settings['path']}: {', '.join(f'{name} {len(rows)}' for name, rows in parts.items())} rows")
        if "test" in parts and settings["final_answers"]:
            rows, size = parts["test"], settings["test_questions"]
            if size is not None:
                rows = [rows[at] for at in self.some(list(range(len(rows))), size, "test_questions", "test questions")]
            self.questions["test"] = self._asked(rows, "test")
        if stage == "test":
            return
        rows = [*parts["train"], *parts["val"]]
        data = Dataset.from_dict({"question": [one.question for one in rows], "answer": [one.answer for one in rows]})
        kept = self.divide(data, settings["path"], set(range(len(parts["train"]), len(rows))))
        if size := settings["val_questions"]:
            chosen = self.some(kept, size, "val_questions", "rows held out")
            self.questions["held_out"] = self._asked([rows[at] for at in chosen], "held_out")

    def _parts(self, bad: BadRows) -> dict[str, list[Row]]:
        parts = read_parts(self.hparams["path"], bad)
        test = self.hparams["test_path"]
        if test is not None:
            parts["test"] = [row for rows in read_parts(test, bad).values() for row in rows]
        return parts

    def _usable(self, parts: dict[str, list[Row]], bad: BadRows, answered: bool = True) -> list[Usable]:
        rows = [row for some in parts.values() for row in some]
        columns = find_columns(rows, self.hparams["question"], self.hparams["answer"] if answered else None, answered)
        rank_zero_info(f"{rows[0].file}: {columns}")
        return usable(rows, columns, bad, self._final_answer() if answered else None)

    def _final_answer(self) -> Judge | None:
        """What finds final answers, if the LightningModule says so: it is the one who scores by them."""
        module = None if self.trainer is None else self.trainer.lightning_module
        found: Judge | None = getattr(module, "final_answer", None) if self.hparams["final_answers"] else None
        return found

    def _asked(self, rows: list[Usable], name: str) -> list[Question]:
        prompts = self.conversations().prompts([one.question for one in rows])
        made: list[OwnQuestion] = [
            {
                "input_ids": ids,
                "idx": one.row.number - 1,
                "question": one.question,
                "reference": one.answer,
                "benchmark": name,
                "place": one.row.file,
                "rows": one.row.values,
            }
            for ids, one in zip(prompts, rows, strict=True)
        ]
        return list(made)
