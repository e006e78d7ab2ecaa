"""The quick start's data, on a small file in the real layout and a tokenizer made here: no network."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import nn
from transformers import BertTokenizer, PreTrainedTokenizerFast

from gpart.datamodules.language import movie_reviews
from gpart.datamodules.language.movie_reviews import MovieReviewDataModule, first, read, split
from gpart.errors import GPartError, GPartFileError

WORDS = [f"word{number}" for number in range(40)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
Rows = list[tuple[str, int]]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a BERT tokenizer of forty words."""
    folder = tmp_path_factory.mktemp("tokenizer")
    vocabulary = [*SPECIAL, *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    BertTokenizer({word: number for number, word in enumerate(vocabulary)}).save_pretrained(folder)
    return str(folder)


def sentence(number: int) -> str:
    """Distinct for each number, of 2 to 8 words."""
    words = [WORDS[number % 40], WORDS[number // 40 % 40]] + ["word1"] * (number % 7)
    return " ".join(words)


def write(path: Path, lines: list[tuple[float, str]]) -> str:
    """The real layout: numbered from 1, tabs, CRLF between the lines and none at the end."""
    rows = [f"{number}\t{score}\t{text}" for number, (score, text) in enumerate(lines, start=1)]
    path.write_bytes("\r\n".join(rows).encode())
    return str(path)


@pytest.fixture
def reviews(tmp_path: Path) -> str:
    """120 positive, 180 negative and 20 neutral sentences."""
    scores = ([2.26666666667, -0.6, -3.5, 1.0, -1.0] * 60) + [0.0] * 20
    return write(tmp_path / "reviews.txt", [(score, sentence(number)) for number, score in enumerate(scores)])


def texts(data: MovieReviewDataModule, part: str) -> list[str]:
    return [example["text"] for example in data.parts[part]]


def classes(data: MovieReviewDataModule, part: str) -> dict[int, int]:
    return dict(Counter(example["labels"] for example in data.parts[part]))


def ready(reviews: str, tokenizer: str, stage: str = "fit", **more: Any) -> MovieReviewDataModule:
    data = MovieReviewDataModule(model=tokenizer, path=reviews, **more)
    data.prepare_data()
    data.setup(stage)
    return data


def test_classes_by_the_sign_and_no_zero(reviews: str) -> None:
    rows = read(Path(reviews))
    assert Counter(label for _, label in rows) == {1: 120, 0: 180}
    assert rows[:3] == [(sentence(0), 1), (sentence(1), 0), (sentence(2), 0)]
    assert MovieReviewDataModule.num_labels == 2
    assert MovieReviewDataModule.id2label == {0: "negative", 1: "positive"}


def test_parts_are_stratified_disjoint_and_complete(reviews: str, tokenizer: str) -> None:
    data = ready(reviews, tokenizer)
    assert classes(data, "train") == {1: 96, 0: 144}
    assert classes(data, "val") == classes(data, "test") == {1: 12, 0: 18}
    parts = [set(texts(data, part)) for part in ("train", "val", "test")]
    assert sum(map(len, parts)) == 300
    assert len(set.union(*parts)) == 300


def test_parts_depend_on_the_seed_and_on_nothing_else(reviews: str, tokenizer: str) -> None:
    one = ready(reviews, tokenizer, seed=1)
    torch.manual_seed(1234)
    again, other = ready(reviews, tokenizer, stage="test", seed=1), ready(reviews, tokenizer, seed=2)
    for part in ("train", "val", "test"):
        assert texts(one, part) == texts(again, part)
        assert set(texts(one, part)) != set(texts(other, part))


def test_the_rule_of_the_split_is_the_documented_one() -> None:
    """Recomputed here: whoever changes the rule changes what every seed means."""
    rows = [(f"Sentence  {number}", number % 2) for number in range(40)]

    def digest(row: tuple[str, int]) -> bytes:
        return hashlib.sha256(f"7:{row[0].lower().replace('  ', ' ')}".encode()).digest()

    own = {label: sorted((row for row in rows if row[1] == label), key=digest) for label in (0, 1)}
    parts = split(rows, seed=7)
    assert parts["val"] == sorted(own[0][:2] + own[1][:2], key=digest)
    assert parts["test"] == sorted(own[0][2:4] + own[1][2:4], key=digest)
    assert parts["train"] == sorted(own[0][4:] + own[1][4:], key=digest)


def test_equal_texts_share_a_part() -> None:
    rows = [(sentence(number), number % 2) for number in range(100)]
    spelled = [(text.upper(), label) for text, label in rows] + [(f"  {text}", label) for text, label in rows]
    opposite = [(text, 1 - label) for text, label in rows[:50]]
    parts = split(rows + spelled + opposite, seed=3)
    keys = [{" ".join(text.lower().split()) for text, _ in part} for part in parts.values()]
    assert sum(map(len, keys)) == len(set.union(*keys)) == 100
    assert sum(map(len, parts.values())) == 350
    assert [len(key) for key in keys] == [80, 10, 10]


@pytest.mark.parametrize("size", [1, 2, 3, 10, 100, 239, 240])
def test_train_size_keeps_the_balance(reviews: str, tokenizer: str, size: int) -> None:
    whole, data = ready(reviews, tokenizer), ready(reviews, tokenizer, train_size=size)
    assert len(data.parts["train"]) == size
    assert abs(classes(data, "train").get(1, 0) - size * 96 / 240) <= 0.5
    chosen = set(texts(data, "train"))
    assert texts(data, "train") == [text for text in texts(whole, "train") if text in chosen]
    for part in ("val", "test"):
        assert texts(data, part) == texts(whole, part)


def test_smaller_training_sets_lie_within_larger_ones() -> None:
    rows = split([(f"sentence {number}", int(number % 3 == 0)) for number in range(90)], seed=0)["train"]
    for size in range(1, len(rows)):
        assert set(first(rows, size)) < set(first(rows, size + 1))


@pytest.mark.parametrize("size", [0, -5, 241])
def test_train_size_out_of_range(reviews: str, tokenizer: str, size: int) -> None:
    with pytest.raises(GPartError, match=rf"240.*{size}"):
        ready(reviews, tokenizer, train_size=size)


@pytest.mark.parametrize(
    "line",
    [
        "2\t1.0",
        "2\t1.0\ta text\tmore",
        "2 1.0 a text",
        "2\thigh\ta text",
        "2\tnan\ta text",
        "2\tinf\ta text",
        "2\t1.0\t  ",
        "",
    ],
)
def test_malformed_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "bad.txt"
    path.write_text(f"1\t1.0\ta text\n{line}\n3\t-1.0\tanother\n")
    with pytest.raises(GPartError, match=r"bad\.txt, line 2"):
        read(path)


def test_line_of_another_encoding_is_named(tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes("1\t1.0\tfine\n2\t1.0\tTouché\n".encode("latin-1"))
    with pytest.raises(GPartError, match=r"latin\.txt, line 2"):
        read(path)


def test_lines_end_at_line_feeds_only(tmp_path: Path) -> None:
    path = tmp_path / "odd.txt"
    path.write_bytes("\ufeff1\t1.0\tone\u2028two\x85three\r\n2\t-1\tTouché\r\n\r\n".encode())
    assert read(path) == [("one\u2028two\x85three", 1), ("Touché", 0)]


@pytest.mark.parametrize("content", ["", "\n", "1\t0.0\tneither\n2\t0\tnor\n"])
def test_file_without_a_sentence(tmp_path: Path, content: str) -> None:
    path = tmp_path / "none.txt"
    path.write_text(content)
    with pytest.raises(GPartError, match=r"none\.txt holds 0 sentences"):
        read(path)


def test_missing_file(tmp_path: Path, tokenizer: str) -> None:
    with pytest.raises(GPartFileError, match=r"absent\.txt"):
        ready(str(tmp_path / "absent.txt"), tokenizer)


def test_class_too_small_to_be_parted(tmp_path: Path, tokenizer: str) -> None:
    path = write(tmp_path / "few.txt", [(1.0, sentence(number)) for number in range(30)] + [(-1.0, "word9")])
    with pytest.raises(GPartError, match="'negative' has 1 "):
        ready(path, tokenizer)


def test_batches_are_padded_to_their_longest(reviews: str, tokenizer: str) -> None:
    data = ready(reviews, tokenizer, batch_size=4)
    widths = set()
    for batch in data.val_dataloader():
        assert set(batch) == {"input_ids", "attention_mask", "token_type_ids", "labels"}
        assert batch["labels"].dtype == torch.int64
        lengths = batch["attention_mask"].sum(1)
        assert batch["input_ids"].shape[1] == lengths.max()
        assert torch.equal(batch["input_ids"] == 0, batch["attention_mask"] == 0)
        widths.add(batch["input_ids"].shape[1])
    assert len(widths) > 1


def test_max_length_cuts(reviews: str, tokenizer: str) -> None:
    data = ready(reviews, tokenizer, max_length=5)
    batch = next(iter(data.train_dataloader()))
    assert batch["input_ids"].shape == (32, 5)
    separator = SPECIAL.index("[SEP]")
    assert all(separator in row for row in batch["input_ids"].tolist())


def test_only_training_is_shuffled_and_the_global_seed_governs_it(reviews: str, tokenizer: str) -> None:
    data = ready(reviews, tokenizer)

    def order(seed: int) -> list[list[int]]:
        seed_everything(seed)
        loader = ready(reviews, tokenizer).train_dataloader()
        return [row for batch in loader for row in batch["input_ids"][:, :3].tolist()]

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert sorted(order(1)) == sorted(order(2))
    for loader in (data.val_dataloader, data.test_dataloader, data.predict_dataloader):
        rows = [[batch["input_ids"].tolist() for batch in loader()] for _ in range(2)]
        assert rows[0] == rows[1]


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_group_by_length_pads_less_and_has_the_same_rows(reviews: str, tokenizer: str, part: str) -> None:
    def padding(**settings: Any) -> tuple[int, list[tuple[list[int], int]]]:
        batches = list(getattr(ready(reviews, tokenizer, batch_size=4, **settings), f"{part}_dataloader")())
        rows = [
            ([token for token in row if token], label)
            for batch in batches
            for row, label in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True)
        ]
        return sum(int((batch["attention_mask"] == 0).sum()) for batch in batches), sorted(rows)

    (mixed, rows), (grouped, rows_grouped) = padding(), padding(group_by_length=True)
    assert rows_grouped == rows
    assert grouped == mixed if part == "val" else grouped < mixed / 2


def test_predict_batches_carry_texts_and_no_labels(reviews: str, tokenizer: str) -> None:
    data = ready(reviews, tokenizer, stage="predict", group_by_length=True)  # which leaves their order
    batches = list(data.predict_dataloader())
    assert [text for batch in batches for text in batch["text"]] == texts(data, "test")
    assert all("labels" not in batch and len(batch["text"]) == len(batch["input_ids"]) for batch in batches)


def test_predict_on_ones_own_sentences_needs_no_file(tokenizer: str) -> None:
    own = ["word1 word2", "", "word3 unheard of word3"]
    data = ready("/no/such/file", tokenizer, stage="predict", sentences=own)
    (batch,) = data.predict_dataloader()
    assert batch["text"] == own
    assert batch["attention_mask"].sum(1).tolist() == [4, 2, 6]


def test_stages_in_any_order(reviews: str, tokenizer: str) -> None:
    for stages in (["fit", "predict"], ["predict", "fit"], ["fit", "fit", "test"]):
        data = MovieReviewDataModule(model=tokenizer, path=reviews, sentences=["word1"])
        for stage in stages:
            data.setup(stage)
        assert len(data.parts["train"]) == 240
        (batch,) = data.predict_dataloader()
        assert batch["text"] == ["word1"]


def test_setup_reads_once(reviews: str, tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = ready(reviews, tokenizer)
    monkeypatch.setattr(movie_reviews, "read", lambda path: pytest.fail("read again"))
    for stage in ("fit", "validate", "test", "predict"):
        data.setup(stage)


@pytest.mark.parametrize("sentences", ["one text", []])
def test_sentences_that_are_no_list_of_texts(sentences: Any) -> None:
    with pytest.raises(GPartError, match="sentences"):
        MovieReviewDataModule(sentences=sentences)


@pytest.mark.parametrize(("setting", "value"), [("batch_size", 0), ("max_length", 0), ("num_workers", -1)])
def test_a_setting_out_of_range_is_named(setting: str, value: int) -> None:
    with pytest.raises(GPartError, match=f"{setting} must be at least {value + 1}, got {value}"):
        MovieReviewDataModule(**{setting: value})


def test_hyperparameters_are_plain(reviews: str, tokenizer: str, tmp_path: Path) -> None:
    data = MovieReviewDataModule(model=Path(tokenizer), path=Path(reviews), sentences=("a", "b"))  # type: ignore[arg-type]
    torch.save(dict(data.hparams), tmp_path / "hparams.pt")
    loaded = torch.load(tmp_path / "hparams.pt", weights_only=True)
    assert loaded["path"] == reviews
    assert loaded["model"] == tokenizer
    assert loaded["sentences"] == ["a", "b"]
    assert set(json.loads(json.dumps(loaded))) == set(loaded)


def test_packaged_names_are_fetched(reviews: str, tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def fetch(name: str) -> Path:
        asked.append(name)
        return Path(reviews).parent

    def resolve(model: str) -> str:
        asked.append(model)
        return tokenizer

    monkeypatch.setattr(movie_reviews, "fetch", fetch)
    monkeypatch.setattr(movie_reviews, "resolve", resolve)
    Path(reviews).rename(Path(reviews).parent / movie_reviews.FILE)
    data = MovieReviewDataModule()
    data.prepare_data()
    assert asked == ["movie-reviews", "packaged:minilm"]
    data.setup("fit")
    assert len(data.parts["train"]) == 240


def test_loader_before_setup() -> None:
    with pytest.raises(GPartError, match=r"setup\(\)"):
        MovieReviewDataModule().train_dataloader()


def test_tokenizer_without_a_pad_token(reviews: str, tokenizer: str, tmp_path: Path) -> None:
    source = str(Path(tokenizer) / "tokenizer.json")
    for name, special in {"decoder": {"eos_token": "[SEP]"}, "neither": {}}.items():
        PreTrainedTokenizerFast(tokenizer_file=source, **special).save_pretrained(tmp_path / name)
    data = ready(reviews, str(tmp_path / "decoder"))
    batch = next(iter(data.val_dataloader()))
    assert set(batch["input_ids"][batch["attention_mask"] == 0].tolist()) == {SPECIAL.index("[SEP]")}
    with pytest.raises(GPartError, match="pad"):
        ready(reviews, str(tmp_path / "neither"))


def test_ranks_share_one_order(reviews: str, tokenizer: str) -> None:
    """Ranks that nobody has seeded must not see some sentences twice and others never."""
    seen: list[int] = []
    for rank in range(2):
        torch.manual_seed(rank)
        data = ready(reviews, tokenizer)
        loop = SimpleNamespace(epoch_progress=SimpleNamespace(current=SimpleNamespace(processed=0)))
        strategy = SimpleNamespace(root_device=torch.device("cpu"))
        data.trainer = SimpleNamespace(world_size=2, global_rank=rank, fit_loop=loop, strategy=strategy)  # type: ignore[assignment]
        share = [at for _, at in data.train_dataloader().sampler]
        assert share != sorted(share)
        seen += share
    assert sorted(seen) == list(range(240))


def test_workers(reviews: str, tokenizer: str) -> None:
    data = ready(reviews, tokenizer, num_workers=1)
    loader, alone = data.val_dataloader(), ready(reviews, tokenizer).val_dataloader()
    assert loader.persistent_workers
    for ours, theirs in zip(loader, alone, strict=True):
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    # Spawned workers get the collate function pickled: it must not drag the datamodule and its trainer along.
    data.trainer = lambda: None  # type: ignore[assignment]
    pickle.dumps(loader.collate_fn)


class Bag(LightningModule):
    """Nothing but an embedding, to go through the loops."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.EmbeddingBag(len(SPECIAL) + len(WORDS), 2)

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = nn.functional.cross_entropy(self.embedding(batch["input_ids"]), batch["labels"])
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        self.log("val", nn.functional.cross_entropy(self.embedding(batch["input_ids"]), batch["labels"]))

    test_step = validation_step

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> list[str]:
        return list(batch["text"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_in_a_trainer(reviews: str, tokenizer: str, tmp_path: Path) -> None:
    data = MovieReviewDataModule(model=tokenizer, path=reviews, sentences=["word1", "word2 word2"])
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path, enable_checkpointing=False, log_every_n_steps=1,
    )  # fmt: skip
    model = Bag()
    trainer.fit(model, datamodule=data)
    assert trainer.global_step == 8  # 240 sentences, 32 at a time
    trainer.test(model, datamodule=data, verbose=False)
    assert trainer.predict(model, datamodule=data) == [["word1", "word2 word2"]]
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    kept = torch.load(tmp_path / "end.ckpt", weights_only=True)["datamodule_hyper_parameters"]
    assert kept["path"] == reviews


def test_predict_alone_fetches_no_data(tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(movie_reviews, "fetch", lambda name: pytest.fail(f"fetched {name}"))
    data = MovieReviewDataModule(model=tokenizer, sentences=["word1"])
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    assert trainer.predict(Bag(), datamodule=data) == [["word1"]]
