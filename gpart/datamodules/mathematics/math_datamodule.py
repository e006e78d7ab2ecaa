"""Mathematics in words: trained on MetaMathQA, scored on GSM8K and MATH.

Invariant: a training row is either trained on or held out, by its number and the seed alone; the benchmarks are only ever
scored.
"""

from __future__ import annotations

from datasets import Dataset
from lightning.pytorch.utilities import rank_zero_info
from torchdata.stateful_dataloader import StatefulDataLoader

from gpart.datamodules.common.seeded import SeededDataModule
from gpart.datamodules.common.splits import check_held_out, chosen, hold_out
from gpart.datamodules.common.text import Keyed
from gpart.datamodules.mathematics.conversations import Conversations, LossCollate, Report
from gpart.datamodules.mathematics.generated import PREFIX, TASKS
from gpart.datamodules.mathematics.length_groups import LengthGroupedSampler
from gpart.datamodules.mathematics.packing import PackedCollate, Packs, pack
from gpart.datamodules.mathematics.questions import Question, QuestionCollate, Questions, QuestionSampler
from gpart.datamodules.mathematics.sources import BENCHMARKS, ask, load_split, questions_of

PROMPT = "Question: {question}\nAnswer: "


class MathDataModule(SeededDataModule):
    """Questions with worked answers, for any Hugging Face causal language model.

    ``fit`` trains on the training set without the part held out; ``validate``, and the choice of the checkpoint, use
    that part; ``test`` asks the benchmarks' questions; ``predict`` asks your own, or the benchmarks' too.

    Batches for the loss hold ``input_ids``, ``labels`` and ``attention_mask``, and can be given to the model as they
    are; the loss is on the answer's tokens and the end token. Batches of questions hold ``input_ids`` and
    ``attention_mask``, padded on the left, and lists: ``idx`` (the row's number), ``question``, ``reference`` (the whole
    solution, where there is one), ``benchmark`` (``gsm8k``, ``math``, ``held_out``, or ``own``) and ``repeated``: True
    where a question only fills up a rank's share and must not count.

    With ``packing``, each training row holds as many examples as fit in ``max_length`` tokens, and none attends to
    another: ``position_ids`` take the place of the mask (see :class:`PackedCollate`). With Flash Attention this needs
    ``batch_size=1``, since Transformers looks for borders there in single rows only. What is held out is not packed, so
    that runs with and without packing are scored alike.

    MetaMathQA writes each question of GSM8K and MATH anew in several ways, and they are not held out together: the loss
    on the held-out part chooses among steps and settings, it does not measure new questions. The benchmarks do.

    Args:
        model: whose tokenizer: a name on the hub, a folder, or ``packaged:NAME``.
        train: what to train on: a name on the hub, a folder in its layout, or a ``.json`` or ``.jsonl`` file; columns
            query and response, question and answer, or problem and solution. Or ``reasoning-gym:gsm_symbolic``,
            made up by that package.
        train_config: its configuration, where it has several, such as ``main`` of GSM8K.
        benchmarks: which test sets: gsm8k, math, or gsm_symbolic, which is made up.
        gsm8k: where GSM8K is: a name on the hub or a folder.
        math: where MATH is: the 5,000 test questions of Hendrycks et al. (2021).
        prompt: what precedes an answer, with ``{question}`` in it.
        chat_template: take the prompt from the tokenizer's chat template instead, the question as the user's turn.
        batch_size: training and held-out examples a step and device; with ``packing``, rows.
        eval_batch_size: questions a step and device.
        max_length: tokens after which an example is cut, or with ``packing`` the length of a row.
        held_out: the part of the training set held out.
        train_size: train on this many of the others only; a smaller number is a part of a larger one.
        val_questions: how many of the held-out rows are asked, too, at each validation.
        test_questions: how many questions of each benchmark; default all.
        packing: put several examples into one row.
        seed: what every choice comes from; with the seed of ``seed_everything``, if there is one, also the order.
        num_workers: the loaders' processes.
        questions: what ``predict`` asks; default the benchmarks' questions.

    Raises:
        ValueError: if a setting is out of its range.
    """

    def __init__(
        self,
        model: str,
        train: str = "meta-math/MetaMathQA",
        train_config: str | None = None,
        benchmarks: list[str] = ["gsm8k", "math"],  # noqa: B006  # not changed: a copy is kept
        gsm8k: str = "openai/gsm8k",
        math: str = "DigitalLearningGmbH/MATH-lighteval",
        prompt: str = PROMPT,
        chat_template: bool = False,
        batch_size: int = 2,
        eval_batch_size: int = 16,
        max_length: int = 2048,
        held_out: float = 0.01,
        train_size: int | None = None,
        val_questions: int = 0,
        test_questions: int | None = None,
        packing: bool = False,
        seed: int = 0,
        num_workers: int = 0,
        questions: list[str] | None = None,
    ) -> None:
        super().__init__()
        if isinstance(benchmarks, str) or not benchmarks or not set(benchmarks) <= set(BENCHMARKS):
            raise ValueError(f"benchmarks must be a list of some of {list(BENCHMARKS)}, got {benchmarks!r}")
        if "{question}" not in prompt:
            raise ValueError(f"prompt must have {{question}} in it, got {prompt!r}")
        if chat_template and prompt != PROMPT:
            raise ValueError(f"chat_template=True makes the prompt, so there can be no other, got {prompt!r}")
        check_held_out(held_out)
        if val_questions < 0 or (test_questions is not None and test_questions < 1):
            raise ValueError(
                f"val_questions must be 0 or more and test_questions 1 or more, got {val_questions} and {test_questions}"
            )
        if questions is not None and (
            isinstance(questions, str) or not questions or not all(map(str.strip, questions))
        ):
            raise ValueError(f"questions must be a list of at least one text, none empty, got {questions!r}")
        # Plain types: a checkpoint holds these, and torch.load(weights_only=True) refuses a Path.
        model, train, gsm8k, math = str(model), str(train), str(gsm8k), str(math)
        benchmarks = list(dict.fromkeys(benchmarks))
        questions = None if questions is None else list(questions)
        self.save_hyperparameters()
        self.parts: dict[str, Dataset] = {}
        self.questions: dict[str, list[Question]] = {}
        self.report: Report | None = None
        self._own: Conversations | None = None
        self._rows: list[list[int]] | None = None

    def prepare_data(self) -> None:
        """Fetches model and data and tokenises the training set, on one process only; setup finds it in the cache."""
        own = self._conversations()
        stage = None if self.trainer is None else self.trainer.state.fn
        if stage in (None, "fit", "validate"):
            own.encode(self._training_set(), self.hparams["train"], self.hparams["max_length"])
        if stage in (None, "test") or (stage == "predict" and self.hparams["questions"] is None):
            for name in self.hparams["benchmarks"]:
                self._benchmark(name)

    def setup(self, stage: str) -> None:
        """Parts what the stage needs and is not there yet.

        Raises:
            FileNotFoundError: if data or model are not there.
            ValueError: if a split or column is missing, or a number of rows asked for is more than there is.
        """
        stage = str(getattr(stage, "value", stage))
        if stage in ("fit", "validate"):
            if "val" not in self.parts:
                self._part()
            if stage == "fit" and self.hparams["packing"] and self._rows is None:
                self._rows = pack(self.parts["train"]["length"][:], self.hparams["max_length"])
            return
        texts = self.hparams["questions"]
        if stage == "predict" and texts is not None:
            numbers = list(range(len(texts)))
            self.questions["own"] = ask(texts, [None] * len(texts), numbers, "own", self._conversations())
            return
        for name in self.hparams["benchmarks"]:
            if name not in self.questions:
                data, size = self._benchmark(name), self.hparams["test_questions"]
                numbers = list(range(len(data)))
                if size is not None:
                    numbers = self._some(numbers, size, "test_questions", f"questions of {name}")
                self.questions[name] = questions_of(data, numbers, name, self._place(name), self._conversations())

    def train_dataloader(self) -> StatefulDataLoader:
        """The training set without the part held out, in random order: examples of like length, or packed rows."""
        examples, pad, size = self._part_of("train"), self._conversations().pad, self.hparams["batch_size"]
        if self._rows is not None:
            packs = Packs(examples, self._rows)
            return self.loader(Keyed(packs), PackedCollate(pad), size, self.sampler(len(packs)))
        sampler = LengthGroupedSampler(examples["length"][:], size, self.run_seed, self.epoch, *self.place)
        return self.loader(Keyed(examples), LossCollate(pad), size, self.follow(sampler))

    def val_dataloader(self) -> list[StatefulDataLoader]:
        """The part held out, for the loss; with ``val_questions``, then some of it as questions."""
        loss = LossCollate(self._conversations().pad)
        loaders = [self.loader(Keyed(self._part_of("val")), loss, self.hparams["batch_size"])]
        if self.hparams["val_questions"]:
            loaders.append(self._ask(["held_out"]))
        return loaders

    def test_dataloader(self) -> list[StatefulDataLoader]:
        """Each benchmark's questions, in the order of ``benchmarks``."""
        return [self._ask([name]) for name in self.hparams["benchmarks"]]

    def predict_dataloader(self) -> StatefulDataLoader:
        """The questions asked for, or all benchmarks'."""
        return self._ask(["own"] if self.hparams["questions"] is not None else self.hparams["benchmarks"])

    def _part(self) -> None:
        """Holds a part out, by the rows' numbers only, and leaves out of both what can't be learnt from."""
        own, data, seed = self._conversations(), self._training_set(), self.hparams["seed"]
        examples, self.report = own.encode(data, self.hparams["train"], self.hparams["max_length"])
        if self.report.rows != len(examples) or self.report.truncated:
            rank_zero_info(f"{self.hparams['train']}: {self.report}")
        held = set(hold_out([(0, at) for at in range(len(data))], self.hparams["held_out"], seed)[1])
        numbers, lengths = examples["idx"][:], examples["length"][:]
        parts: dict[str, list[int]] = {"train": [], "val": []}
        for at, number in enumerate(numbers):
            parts["val" if number in held else "train"].append(at)
        for part, found in parts.items():
            if not found:
                raise ValueError(f"{self.hparams['train']} leaves no row for {part}: {self.report}")
        asked, size = [numbers[at] for at in parts["val"]], self.hparams["val_questions"]
        if size:
            asked = self._some(asked, size, "val_questions", "rows held out")
            self.questions["held_out"] = questions_of(data, asked, "held_out", self.hparams["train"], own)
        size = self.hparams["train_size"]
        if size is not None:
            row_of = {numbers[at]: at for at in parts["train"]}
            parts["train"] = [row_of[at] for at in self._some(list(row_of), size, "train_size", "rows not held out")]
        # The order of what is held out is of no matter, and of like length less is padded.
        parts["val"].sort(key=lambda at: -lengths[at])
        self.parts = {part: examples.select(found) for part, found in parts.items()}

    def _some(self, numbers: list[int], size: int, setting: str, what: str) -> list[int]:
        if not 1 <= size <= len(numbers):
            raise ValueError(f"{setting} must be from 1 to the {len(numbers)} {what}, got {size}")
        places = chosen([(0, number) for number in numbers], range(len(numbers)), size, self.hparams["seed"])
        return [numbers[at] for at in places]

    def _ask(self, names: list[str]) -> StatefulDataLoader:
        if missing := [name for name in names if name not in self.questions]:
            raise ValueError(
                f"no questions {missing} among {sorted(self.questions)}: setup() has not run for this stage"
            )
        questions = Questions([one for name in names for one in self.questions[name]])
        sampler, size = QuestionSampler(len(questions), *self.place), self.hparams["eval_batch_size"]
        return self.loader(questions, QuestionCollate(self._conversations().pad), size, sampler)

    def _part_of(self, part: str) -> Dataset:
        if part not in self.parts:
            raise ValueError(f"no part {part!r} among {sorted(self.parts)}: setup() has not run for this stage")
        return self.parts[part]

    def _conversations(self) -> Conversations:
        if self._own is None:
            settings = self.hparams
            self._own = Conversations(settings["model"], settings["prompt"], settings["chat_template"])
        return self._own

    def _training_set(self) -> Dataset:
        return load_split(self.hparams["train"], self.hparams["train_config"], "train")

    def _benchmark(self, name: str) -> Dataset:
        return load_split(self._place(name), BENCHMARKS[name], "test")

    def _place(self, name: str) -> str:
        return f"{PREFIX}{name}" if name in TASKS else str(self.hparams[name])
