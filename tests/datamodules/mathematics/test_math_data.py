"""The mathematics DataModule: what is learnt of an example, which rows go where, what a batch holds, what is refused."""

from __future__ import annotations

import json
import logging
import shutil
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from datasets import Dataset
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from transformers import AutoTokenizer

from gpart.datamodules import MathDataModule
from gpart.datamodules.mathematics import conversations
from gpart.datamodules.mathematics.conversations import PAIRS, Conversations, Report
from gpart.datamodules.mathematics.generated import TASKS
from gpart.datamodules.mathematics.sources import BENCHMARKS, Benchmark
from gpart.errors import GPartError, GPartFileError

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


@pytest.fixture(scope="session")
def folders(math_folders: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    place = tmp_path_factory.mktemp("math")
    made = {
        "model": math_folders.tokenizer(place / "model"),
        "chat": math_folders.tokenizer(place / "chat", template=math_folders.CHAT),
        "train": math_folders.metamath(place / "metamath"),
        "gsm8k": math_folders.gsm8k(place / "gsm8k"),
        "math": math_folders.math(place / "math"),
    }
    return {name: str(path) for name, path in made.items()}


@pytest.fixture
def data(folders: dict[str, str]) -> Any:
    given = {name: path for name, path in folders.items() if name != "chat"}
    return lambda **more: MathDataModule(**{**given, "held_out": 0.1, "batch_size": 4, "eval_batch_size": 4, **more})


def jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def examples(own: MathDataModule) -> dict[int, dict[str, Any]]:
    own.setup("fit")
    return {one["idx"]: one for part in ("train", "val") for one in own.parts[part]}


class Recorder(LightningModule):
    """Notes what each step is given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen: dict[str, list[Any]] = {"train": [], "val": [], "questions": [], "test": [], "predict": []}

    def training_step(self, batch: dict[str, Any], index: int) -> torch.Tensor:
        self.seen["train"] += [tuple(row) for row in batch["input_ids"].tolist()]
        return self.layer(torch.ones(1, 1)).sum()

    def validation_step(self, batch: dict[str, Any], index: int, dataloader_idx: int = 0) -> None:
        self.seen["questions" if dataloader_idx else "val"] += (
            batch["idx"] if dataloader_idx else batch["labels"].tolist()
        )

    def test_step(self, batch: dict[str, Any], index: int, dataloader_idx: int = 0) -> None:
        self.seen["test"] += [(dataloader_idx, *one) for one in zip(batch["benchmark"], batch["idx"], strict=True)]

    def predict_step(self, batch: dict[str, Any], index: int) -> torch.Tensor:
        self.seen["predict"] += batch["question"]
        return torch.zeros(1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


# What is learnt of an example.


def test_the_answer_and_the_end_are_learnt_and_the_prompt_is_not(data: Any, math_folders: Any) -> None:
    own = data()
    rows = examples(own)
    tokenizer = AutoTokenizer.from_pretrained(own.hparams["model"])
    assert sorted(rows) == list(range(80))
    for idx, (query, response) in enumerate(math_folders.pairs(80)):
        ids, prompt = rows[idx]["input_ids"], rows[idx]["prompt"]
        assert tokenizer.decode(ids) == f"<s>Question: {query}\nAnswer: {response}</s>"
        assert ids[:prompt] == tokenizer(f"Question: {query}\nAnswer:")["input_ids"]
        assert tokenizer.decode(ids[prompt:]) == f" {response}</s>"
        assert (ids.count(1), ids.count(2)) == (1, 1)
    assert own.report == Report(rows=80, empty=0, dropped=0, truncated=0, merged=0)


def test_a_batch_for_the_loss_has_these_values(data: Any) -> None:
    own = data(num_workers=0)
    rows = examples(own)
    of_ids = {tuple(one["input_ids"]): one for one in rows.values()}
    batches = list(own.train_dataloader())
    assert len(batches) == 18
    for batch in [*batches, *own.val_dataloader()[0]]:
        assert list(batch) == ["input_ids", "attention_mask", "labels"]
        assert {value.dtype for value in batch.values()} == {torch.int64}
        lengths = batch["attention_mask"].sum(1).tolist()
        assert batch["input_ids"].shape[1] == max(lengths)
        for ids, mask, labels, length in zip(*(value.tolist() for value in batch.values()), lengths, strict=True):
            one = of_ids[tuple(ids[:length])]
            rest = len(ids) - length
            assert mask == [1] * length + [0] * rest
            assert ids[length:] == [0] * rest
            assert labels == [-100] * one["prompt"] + ids[one["prompt"] : length] + [-100] * rest


def test_the_rows_held_out_have_little_padding_and_the_first_batches_stand_for_all(data: Any) -> None:
    own = data(num_workers=0, batch_size=2)
    examples(own)
    steps = [batch["attention_mask"].sum(1).tolist() for batch in own.val_dataloader()[0]]
    held = sorted((length for step in steps for length in step), reverse=True)
    assert sorted(steps, reverse=True) == [held[at : at + 2] for at in (0, 2, 4, 6)]
    assert steps != sorted(steps, reverse=True)  # as limit_val_batches takes the first
    assert steps == [batch["attention_mask"].sum(1).tolist() for batch in own.val_dataloader()[0]]


def test_the_prompt_asked_is_bit_for_bit_the_prompt_learnt(data: Any, folders: dict[str, str]) -> None:
    for more in ({}, {"chat_template": True, "model": folders["chat"]}, {"prompt": "{question}"}):
        own = data(val_questions=8, **more)
        rows = examples(own)
        assert len(own.questions["held_out"]) == 8
        for one in own.questions["held_out"]:
            row = rows[one["idx"]]
            assert row["input_ids"][: row["prompt"]] == one["input_ids"]


def test_what_is_too_long_is_cut_without_an_end_or_left_out(
    folders: dict[str, str], math_folders: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = Conversations(folders["model"], "{question}")
    [(ids, border, _)] = own.examples(["What is 1 plus 2?"], ["1 + 2 = 3."])
    prompt, response, whole = ids[:border], ids[border:], len(ids)
    assert own.prompts(["What is 1 plus 2?"]) == [prompt]
    extra = [("What is 1 plus 2?", "1 + 2 = 3."), (" ", "3"), ("What is 3?", "\n"), ("What is 4?", "")]
    train = jsonl(tmp_path / "own.jsonl", [{"query": q, "response": a} for q, a in extra * 20])

    def encoded(length: int) -> tuple[MathDataModule, list[list[int]]]:
        module = MathDataModule(folders["model"], train, prompt="{question}", max_length=length, held_out=0.5)
        module.setup("fit")
        return module, [*module.parts["train"]["input_ids"], *module.parts["val"]["input_ids"]]

    with caplog.at_level(logging.INFO):
        fits, rows = encoded(whole)
        assert rows == [prompt + response] * 20  # of exactly the length: with its end
        assert fits.report == Report(80, empty=60, dropped=0, truncated=0, merged=0)
        cut, rows = encoded(whole - 1)
        assert rows == [prompt + response[:-1]] * 20
        assert 2 not in rows[0]
        assert cut.report == Report(80, empty=60, dropped=0, truncated=20, merged=0)
        one, rows = encoded(len(prompt) + 1)
        assert rows == [prompt + response[:1]] * 20
        assert one.report == cut.report
    said = [record.message for record in caplog.records if "rows" in record.message]
    assert said == [
        f"{train}: of 80 rows {cut} are cut at max_length and have no end token, 0 are left out whose prompt alone is"
        " that long, 60 are left out without question or answer"
        for cut in (0, 20, 20)
    ]
    with pytest.raises(GPartError, match=r"leaves no row for train: of 80 rows 0 are cut .* 20 are left out whose"):
        encoded(len(prompt))


def test_nothing_is_said_where_every_row_is_whole(data: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        data().setup("fit")
    assert not [record for record in caplog.records if "max_length" in record.message]


def test_the_report_is_the_same_from_the_cache(data: Any, math_folders: Any, tmp_path: Path, own_cache: Path) -> None:
    extra = [
        {"query": "", "response": "x"},
        {"query": "x", "response": None},
        {"query": "plus 5 " * 90, "response": "y"},
    ]
    train = str(math_folders.metamath(tmp_path / "more", 40, extra))
    reports = []
    for _ in range(2):
        own = data(train=train, max_length=120)
        own.prepare_data()
        own.setup("fit")
        reports.append(own.report)
        left = sorted([*own.parts["train"]["idx"], *own.parts["val"]["idx"]])
        assert not {40, 41, 42} & set(left)
    assert reports[0] == reports[1]
    assert (reports[0].rows, reports[0].empty, reports[0].dropped) == (43, 2, 1)


# Chat templates.


def test_a_chat_template_makes_prompt_and_answer(data: Any, folders: dict[str, str], math_folders: Any) -> None:
    own = data(model=folders["chat"], chat_template=True)
    rows = examples(own)
    tokenizer = AutoTokenizer.from_pretrained(folders["chat"])
    for idx, (query, response) in enumerate(math_folders.pairs(80)):
        ids, prompt = rows[idx]["input_ids"], rows[idx]["prompt"]
        assert ids.count(1) == 1  # the template brings its own beginning
        assert tokenizer.decode(ids[:prompt]) == f"<s><|user|>\n{query}<|end|>\n<|assistant|>\n"
        assert tokenizer.decode(ids[prompt:]) == f"{response}<|end|>\n</s>"


def test_no_end_is_added_to_a_template_that_writes_it(math_folders: Any, tmp_path: Path) -> None:
    own = Conversations(str(math_folders.tokenizer(tmp_path, template=math_folders.CHAT_EOS)), "", chat=True)
    [(ids, border, _)] = own.examples(["What is 1?"], ["1."])
    assert own.tokenizer.decode(ids[border:]) == "1.</s>\n"


def test_a_template_that_changes_the_prompt_afterwards_is_refused(math_folders: Any, tmp_path: Path) -> None:
    template = math_folders.CHAT.replace("{{ bos_token }}", "{{ messages|length }} turns")
    own = Conversations(str(math_folders.tokenizer(tmp_path, template=template)), "", chat=True)
    with pytest.raises(
        GPartError, match=r"the chat template of .* does not put the prompt before .*'1 turns.*'2 turns"
    ):
        own.examples(["What is 1?"], ["1."])


def test_a_template_with_the_days_date_is_another_result_on_another_day(
    math_folders: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llama = "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}{{ date_string }}"
    fixed = Conversations(
        str(math_folders.tokenizer(tmp_path / "1", template=llama + math_folders.CHAT)), "", chat=True
    )
    [prompt] = fixed.prompts(["What is 1?"])
    assert fixed.tokenizer.decode(prompt).startswith("26 Jul 2024<s>")
    own = Conversations(
        str(math_folders.tokenizer(tmp_path / "2", template="{{ strftime_now('%d') }}" + math_folders.CHAT)),
        "",
        chat=True,
    )
    today = own.key
    assert own.key == today
    monkeypatch.setattr(Conversations, "_chats", lambda self, chats, prompt=False: ["another day's"])
    assert own.key != today


def test_a_tokenizer_that_ends_every_text_does_not_end_the_prompt(math_folders: Any, tmp_path: Path) -> None:
    own = Conversations(str(math_folders.tokenizer(tmp_path, ends=True)), "Q: {question}")
    [(ids, border, _)] = own.examples(["1?"], ["1."])
    assert own.tokenizer.decode(ids) == "<s>Q: 1? 1.</s>"
    assert own.prompts(["1?"]) == [ids[:border]]


def test_braces_in_questions_and_prompts_stay(folders: dict[str, str]) -> None:
    own = Conversations(folders["model"], "\\boxed{} {question}: ")
    assert own.tokenizer.decode(own.prompts(["$\\frac{1}{2}$ {question}"])[0]) == (
        "<s>\\boxed{} $\\frac{1}{2}$ {question}:"
    )


# Which rows go where.


def test_by_row_numbers_the_held_out_part_is_not_trained_on(data: Any) -> None:
    """The whole of fit, then test and predict."""
    module, own = Recorder(), data(val_questions=3)
    trainer = Trainer(max_epochs=2, enable_checkpointing=False, **QUIET)
    trainer.fit(module, datamodule=own)
    train, val = own.parts["train"]["idx"][:], own.parts["val"]["idx"][:]
    assert sorted([*train, *val]) == list(range(80))
    assert len(val) == 8
    count = Counter(tuple(token for token in row if token) for row in module.seen["train"])
    assert count == dict.fromkeys(map(tuple, own.parts["train"]["input_ids"]), 2)  # each once an epoch
    assert len(set(module.seen["questions"])) == 3
    assert set(module.seen["questions"]) < set(val)
    trainer.test(module, datamodule=own, verbose=False)
    assert set(module.seen["test"]) == {(0, "gsm8k", at) for at in range(13)} | {(1, "math", at) for at in range(9)}
    assert len(module.seen["test"]) == 22
    trainer.predict(module, datamodule=own)
    assert len(module.seen["predict"]) == 22


def test_the_parts_come_from_numbers_and_seed_alone(data: Any, folders: dict[str, str]) -> None:
    def held(**more: Any) -> list[int]:
        own = data(**more)
        torch.manual_seed(len(more))
        own.setup("validate")
        return sorted(own.parts["val"]["idx"])

    first = held()
    # Pinned: a change of the rule would mix what earlier runs trained on with what they held out.
    assert first == [15, 20, 36, 44, 46, 69, 74, 76]
    assert held(batch_size=3, model=folders["chat"], chat_template=True) == first
    assert set(held(max_length=40)) < set(first)  # too long a prompt drops out and nothing takes its place
    assert held(seed=1) != first


def test_smaller_numbers_are_parts_of_larger_ones(data: Any) -> None:
    def parts(**more: Any) -> tuple[set[int], set[int], set[int]]:
        own = data(**more)
        own.setup("fit")
        own.setup("test")
        asked = {one["idx"] for one in own.questions.get("held_out", [])}
        return set(own.parts["train"]["idx"]), asked, {one["idx"] for one in own.questions["gsm8k"]}

    small = parts(train_size=20, val_questions=2, test_questions=4)
    large = parts(train_size=40, val_questions=5, test_questions=9)
    assert [len(part) for part in small] == [20, 2, 4]
    assert [len(part) for part in large] == [40, 5, 9]
    assert all(one < two for one, two in zip(small, large, strict=True))


def test_packing_splits_and_loses_nothing(data: Any) -> None:
    own = data(packing=True, max_length=200, batch_size=2)
    own.setup("fit")
    pieces = []
    for batch in own.train_dataloader():
        assert list(batch) == ["use_cache", "input_ids", "labels", "position_ids"]
        assert batch["input_ids"].shape[1] <= 200
        for ids, positions in zip(batch["input_ids"].tolist(), batch["position_ids"].tolist(), strict=True):
            starts = [at for at, position in enumerate(positions) if position == 0] + [len(ids)]
            pieces += [tuple(ids[start:end]) for start, end in pairwise(starts)]
    examples = Counter(piece for piece in pieces if piece[0])
    assert examples == Counter(map(tuple, own.parts["train"]["input_ids"]))
    assert {list(batch)[1] for batch in own.val_dataloader()[0]} == {"attention_mask"}  # held out: not packed


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("step", [3, 5, 7])
def test_a_resumed_run_sees_the_rows_that_it_would_have_seen(
    step: int, packing: bool, data: Any, tmp_path: Path
) -> None:
    """An epoch has 5 steps: a checkpoint in the first one's middle, of its last step, in the second's middle."""

    def fit(limit: int, path: Path | None = None) -> list[Any]:
        seed_everything(0)
        module = Recorder()
        keeper = ModelCheckpoint(tmp_path / str(limit), every_n_train_steps=step, save_top_k=-1, filename="{step}")
        trainer = Trainer(max_steps=limit, callbacks=[keeper], num_sanity_val_steps=0, **QUIET)
        own = data(packing=packing, max_length=256, batch_size=4 if packing else 16)
        trainer.fit(module, datamodule=own, ckpt_path=path)
        assert trainer.num_training_batches == 5
        return module.seen["train"]

    whole = fit(11)
    begun = fit(step)
    assert begun == whole[: len(begun)]
    assert begun + fit(11, tmp_path / str(step) / f"step={step}.ckpt") == whole


def test_the_first_order_is_of_the_trainers_epoch(data: Any) -> None:
    for more in ({}, {"packing": True, "max_length": 256}):
        own, trainer = data(**more), Trainer(**QUIET, enable_checkpointing=False)
        own.setup("fit")
        trainer.fit_loop.epoch_progress.current.processed = 2
        own.trainer = trainer
        assert next(iter(own.train_dataloader().sampler))[0] == 2


def test_texts_are_tokenised_once(data: Any, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = data()
    first.prepare_data()
    first.setup("fit")
    calls: list[int] = []
    real = Conversations.examples
    monkeypatch.setattr(Conversations, "examples", lambda self, *texts: calls.append(1) or real(self, *texts))
    second = data()
    second.setup("fit")
    assert calls == []
    assert second.parts["train"][:] == first.parts["train"][:]
    for more in ({"max_length": 77}, {"prompt": "{question}"}, {"completion_only_loss": False}):
        data(**more).setup("fit")
        assert calls
        calls.clear()


# What questions hold.


def test_the_benchmarks_questions_have_their_solutions(data: Any, math_folders: Any) -> None:
    own = data()
    own.setup("test")
    loaders = own.test_dataloader()
    for loader, name, seed, count in zip(loaders, ("gsm8k", "math"), (2, 6), (13, 9), strict=True):
        batches = list(loader)
        assert [idx for batch in batches for idx in batch["idx"]] != list(range(count))
        assert sorted(idx for batch in batches for idx in batch["idx"]) == list(range(count))
        pairs = math_folders.pairs(count, seed=seed)
        lengths = []
        for batch in batches:
            assert set(batch["benchmark"]) == {name}
            assert batch["repeated"] == [False] * len(batch["idx"])
            assert all(type(idx) is int for idx in batch["idx"])
            lengths += batch["attention_mask"].sum(1).tolist()
            for at, idx in enumerate(batch["idx"]):
                query, answer = pairs[idx]
                whole = f"{query} Use $\\frac{{1}}{{1}}$." if name == "math" else query
                solved = f"{answer} So $\\boxed{{{answer.split()[-1]}}}$." if name == "math" else f"main: {answer}"
                assert (batch["question"][at], batch["reference"][at]) == (whole, solved)
                ids = batch["input_ids"][at][batch["attention_mask"][at].bool()].tolist()
                assert own._own.tokenizer.decode(ids) == f"<s>Question: {whole}\nAnswer:"
                assert batch["input_ids"][at][-1] == ids[-1]  # padded on the left
        assert lengths == sorted(lengths, reverse=True)


def test_own_questions_have_no_solution_and_need_no_data(folders: dict[str, str]) -> None:
    own = MathDataModule(folders["model"], "no/train", gsm8k="no/gsm8k", questions=["What is 1?", "What is 22 plus 3?"])
    module = Recorder()
    Trainer(**QUIET, enable_checkpointing=False).predict(module, datamodule=own)
    assert sorted(module.seen["predict"]) == ["What is 1?", "What is 22 plus 3?"]
    [batch] = list(own.predict_dataloader())
    assert "reference" not in batch
    assert sorted(zip(batch["idx"], batch["question"], batch["benchmark"], strict=True)) == [
        (0, "What is 1?", "own"), (1, "What is 22 plus 3?", "own")
    ]  # fmt: skip


def test_only_the_stages_data_is_needed(data: Any, folders: dict[str, str]) -> None:
    module, quiet = Recorder(), {**QUIET, "enable_checkpointing": False}
    Trainer(max_steps=1, **quiet).fit(module, datamodule=data(gsm8k="no/gsm8k", math="no/math"))
    Trainer(**quiet).test(
        module, datamodule=data(train="no/train", math="no/math", benchmarks=["gsm8k"]), verbose=False
    )
    assert {name for _, name, _ in module.seen["test"]} == {"gsm8k"}


@pytest.mark.parametrize("more", [{}, {"packing": True, "max_length": 200}])
def test_worker_processes_give_the_same_batches(data: Any, more: dict[str, Any]) -> None:
    def batches(workers: int) -> list[list[Any]]:
        own = data(num_workers=workers, val_questions=4, **more)
        own.setup("fit")
        loaders = [own.train_dataloader(), *own.val_dataloader()]
        return [
            [
                {name: getattr(value, "tolist", lambda value=value: value)() for name, value in batch.items()}
                for batch in one
            ]
            for one in loaders
        ]

    assert batches(0) == batches(2)


# Other sources.


def test_gsm8k_and_own_files_are_trained_on_too(data: Any, folders: dict[str, str], tmp_path: Path) -> None:
    own = data(train=folders["gsm8k"], train_config="main")
    assert len(examples(own)) == 30
    rows = [{"problem": f"What is {at}?", "solution": f"{at}.", "level": at} for at in range(20)]
    assert len(examples(data(train=jsonl(tmp_path / "own.jsonl", rows)))) == 20
    (tmp_path / "own.json").write_text(json.dumps(rows))
    assert len(examples(data(train=str(tmp_path / "own.json")))) == 20


def test_a_file_is_a_benchmarks_test_questions(data: Any, tmp_path: Path) -> None:
    """Of each of the known pairs of columns, and of each ending; GSM8K's own configuration is not asked of a file."""
    rows = [(f"How much is {at} and 1?", f"It is #### {at + 1}") for at in range(7)]
    for asked, answered in PAIRS:
        of_pair = [{"idx": at, asked: q, answered: a, "input": ""} for at, (q, a) in enumerate(rows)]
        for name in ("gsm8k", "math"):
            own = data(**{name: jsonl(tmp_path / f"{asked}.jsonl", of_pair)}, benchmarks=[name])
            own.setup("test")
            [loader] = own.test_dataloader()
            batches = list(loader)
            found = [
                (batch[key][at], batch["idx"][at])
                for batch in batches
                for key in ("question",)
                for at in range(len(batch["idx"]))
            ]
            assert sorted(found, key=lambda one: one[1]) == [(q, at) for at, (q, _) in enumerate(rows)]
            assert {place for batch in batches for place in batch["place"]} == {str(tmp_path / f"{asked}.jsonl")}
            assert {
                (idx, text) for batch in batches for idx, text in zip(batch["idx"], batch["reference"], strict=True)
            } == {(at, a) for at, (_, a) in enumerate(rows)}
    Dataset.from_dict({"problem": [q for q, _ in rows], "solution": [a for _, a in rows]}).to_parquet(
        tmp_path / "own.parquet"
    )
    own = data(math=str(tmp_path / "own.parquet"), benchmarks=["math"], test_questions=3)
    own.setup("test")
    assert len(own.questions["math"]) == 3


def test_a_row_of_a_benchmark_without_text_is_named(data: Any, tmp_path: Path) -> None:
    for at, row in enumerate([{"query": " ", "response": "#### 1"}, {"query": "1?", "response": None}]):
        path = jsonl(tmp_path / f"{at}.jsonl", [{"query": "2?", "response": "#### 2"}, row])
        with pytest.raises(
            GPartError, match=rf"row 1 of .*{at}\.jsonl must have a question and an answer, got query='"
        ):
            data(gsm8k=path, benchmarks=["gsm8k"]).setup("test")


def test_an_instruction_with_an_input_beside_it_is_refused(data: Any, tmp_path: Path) -> None:
    rows = [{"instruction": "Add.", "input": "1 and 1", "output": "#### 2"}] * 3
    with pytest.raises(GPartError, match="'input' adds to 3 of them, such as '1 and 1'"):
        data(math=jsonl(tmp_path / "own.jsonl", rows), benchmarks=["math"]).setup("test")


def test_a_benchmark_has_the_configurations_that_are_asked_for(data: Any, folders: dict[str, str]) -> None:
    """As of EleutherAI/hendrycks_math, which has no whole."""

    def references(**more: Any) -> list[str]:
        own = data(**more)
        own.setup("test")
        return [str(one["reference"]).split(":")[0] for one in own.questions[own.hparams["benchmarks"][0]]]

    many = folders["gsm8k"]
    assert references(benchmarks=["math"], math=many, math_config="socratic") == ["socratic"] * 13
    assert (
        references(benchmarks=["math"], math=many, math_config=["socratic", "main"])
        == ["socratic"] * 13 + ["main"] * 13
    )
    assert references(benchmarks=["gsm8k"]) == ["main"] * 13
    assert references(benchmarks=["gsm8k"], gsm8k_config="socratic") == ["socratic"] * 13
    assert len(examples(data(train=many, train_config=["main", "socratic"]))) == 60
    with pytest.raises(GPartFileError, match=r"(?s)no data set .*available configs: \['main', 'socratic'\]"):
        references(benchmarks=["math"], math=many)
    with pytest.raises(GPartFileError, match=r"no data set .* \(configuration 'algebra'\)"):
        references(benchmarks=["math"], math=many, math_config="algebra")
    with pytest.raises(GPartError, match=r"the configurations of .*gsm8k' must be at least one, got \[\]"):
        references(benchmarks=["math"], math=many, math_config=[])


def test_a_damaged_file_is_named(data: Any, tmp_path: Path, own_cache: Path) -> None:
    path = tmp_path / "damaged.jsonl"
    path.write_text('{"query": "1?", "response": "1."}\n{"query": "2?", "resp')
    with pytest.raises(GPartError, match=r"damaged\.jsonl' can't be read: "):
        data(train=str(path)).setup("fit")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(GPartError, match=r"empty\.jsonl' can't be read: it is empty"):
        data(train=str(tmp_path / "empty.jsonl")).setup("fit")
    (tmp_path / "none.json").write_text("[]")
    with pytest.raises(GPartError, match=r"none\.json' can't be read: "):
        data(train=str(tmp_path / "none.json")).setup("fit")


def test_missing_columns_and_splits_are_named(data: Any, math_folders: Any, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "own.jsonl", [{"query": "1?", "answer": "1."}] * 9)
    with pytest.raises(GPartError, match=r"own.jsonl has the columns \['query', 'answer'\]; expected \('query', 'resp"):
        data(train=path).setup("fit")
    path = jsonl(tmp_path / "numbers.jsonl", [{"question": "1?", "answer": 1}] * 9)
    with pytest.raises(GPartError, match="the column 'answer' holds int64, expected strings"):
        data(train=path).setup("fit")
    folder = str(math_folders.gsm8k(tmp_path / "gsm8k", {"train": 12}))
    with pytest.raises(GPartError, match=r"gsm8k' \(configuration 'main'\) has no split 'test'; it has \['train'\]"):
        data(gsm8k=folder).setup("test")
    with pytest.raises(GPartFileError, match="no data set 'nosuch/data', on the hub or as a folder"):
        data(train="nosuch/data").setup("fit")
    with pytest.raises(GPartFileError, match=r"no file 'nosuch\.jsonl'"):
        data(train="nosuch.jsonl").setup("fit")
    with pytest.raises(GPartError, match=r"'.*own\.jsonl' has no configurations, got 'main'"):
        data(train=str(tmp_path / "own.jsonl"), train_config="main").setup("fit")
    with pytest.raises(GPartError, match=r"'.*own\.jsonl' has no configurations, got 'main'"):
        data(gsm8k=str(tmp_path / "own.jsonl"), gsm8k_config="main").setup("test")
    with pytest.raises(GPartError, match=r"\('question', 'answer'\) or .* or \('instruction', 'output'\)$"):
        data(math=str(tmp_path / "own.jsonl"), benchmarks=["math"]).setup("test")
    with pytest.raises(GPartFileError, match=r"no file 'nosuch\.parquet'"):
        data(math="nosuch.parquet", benchmarks=["math"]).setup("test")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"held_out": 0.0}, "got 0.0"),
        ({"held_out": 1.0}, "got 1.0"),
        ({"held_out": 0.999}, "held_out=0.999 of 80 rows"),
        ({"benchmarks": []}, r"some of \['gsm8k', 'math', 'gsm_symbolic'\], got \[\]"),
        ({"benchmarks": ["gsm8k", "aime"]}, r"got \['gsm8k', 'aime'\]"),
        ({"benchmarks": "gsm8k"}, "a list of some of .*, got 'gsm8k'"),
        ({"prompt": "Q:"}, r"prompt must have \{question\} in it, got 'Q:'"),
        ({"prompt": "{question}", "chat_template": True}, "there can be no other, got '{question}'"),
        ({"train_size": 73}, "train_size must be from 1 to the 72 rows not held out, got 73"),
        ({"train_size": 0}, "train_size must be from 1 to the 72 rows not held out, got 0"),
        ({"val_questions": 9}, "val_questions must be from 1 to the 8 rows held out, got 9"),
        ({"val_questions": -1}, "got -1 and None"),
        ({"test_questions": 0}, "got 0 and 0"),
        ({"test_questions": 14}, "test_questions must be from 1 to the 13 questions of gsm8k, got 14"),
        ({"questions": "What is 1?"}, r"at least one text, none empty, got 'What is 1\?'"),
        ({"questions": ["What is 1?", " "]}, "none empty, got"),
        ({"questions": []}, r"none empty, got \[\]"),
        ({"chat_template": True}, "chat_template=True, but the tokenizer of .* has no chat template"),
        (
            {"val_questions_of": "train"},
            r"val_questions_of must be one of \('held_out', 'gsm8k', 'math'\), got 'train'",
        ),
        ({"batch_size": 0}, "^batch_size must be at least 1, got 0"),
        ({"eval_batch_size": 0}, "eval_batch_size must be at least 1, got 0"),
        ({"max_length": 0}, "max_length must be at least 1, got 0"),
        ({"num_workers": -1}, "num_workers must be at least 0, got -1"),
    ],
)
def test_what_is_wrong_is_named(data: Any, more: dict[str, Any], said: str) -> None:
    def whole() -> None:
        own = data(**more)
        own.setup("fit")
        own.setup("test")

    with pytest.raises(GPartError, match=said):
        whole()


def test_the_choices_in_the_help_are_the_benchmarks() -> None:
    assert get_args(Benchmark) == tuple(BENCHMARKS) == ("gsm8k", "math", *TASKS)
    assert get_type_hints(MathDataModule.__init__)["benchmarks"] == list[Benchmark]


def test_a_tokenizer_without_an_end_is_refused(
    data: Any, math_folders: Any, tiny_encoder: Path, tmp_path: Path
) -> None:
    for folder in (tiny_encoder, math_folders.tokenizer(tmp_path, eos=False)):
        with pytest.raises(GPartError, match=f"the tokenizer of {folder} has no end-of-text token.*special tokens are"):
            data(model=str(folder)).setup("fit")


def test_another_tokenizer_or_template_is_another_result(
    math_folders: Any, folders: dict[str, str], tmp_path: Path
) -> None:
    def key(folder: Path | str, **more: Any) -> str:
        return Conversations(str(folder), "{question}", **more).key

    same = tmp_path / "same"
    shutil.copytree(folders["chat"], same)
    other = math_folders.tokenizer(tmp_path / "other", template=math_folders.CHAT + " ")
    keys = [
        key(folders["model"]),
        key(folders["chat"], chat=True),
        key(other, chat=True),
        key(math_folders.tokenizer(tmp_path / "ends", ends=True)),
        key(math_folders.tokenizer(tmp_path / "size", size=380)),
    ]
    assert len(set(keys)) == 5
    assert key(same, chat=True) == keys[1]


def test_a_loader_before_setup_is_named(data: Any) -> None:
    with pytest.raises(GPartError, match="no part 'train' among"):
        data().train_dataloader()
    with pytest.raises(GPartError, match=r"no questions \['gsm8k'\] among"):
        data().test_dataloader()


def test_the_tokenizer_is_loaded_once(data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    real = conversations.load_tokenizer
    monkeypatch.setattr(conversations, "load_tokenizer", lambda model: calls.append(model) or real(model))
    own = data()
    own.prepare_data()
    for stage in ("fit", "validate", "test", "predict"):
        own.setup(stage)
    assert len(calls) == 1
