"""Causal language models: the loss by tokens however a step is cut, and generation that depends on the prompt alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

from gpart.callbacks import GPartCallback
from gpart.errors import GPartError, GPartFileError
from gpart.lightning_modules import CausalLM, ImageClassifier, SequenceClassifier
from gpart.lightning_modules.mathematics import language_models
from gpart.lightning_modules.mathematics.generation import Generator, judge
from gpart.lightning_modules.mathematics.language_models import QUANTIZATIONS, Quantization

KINDS = ["llama", "gpt2"]
TARGETS = {"llama": ["q_proj", "v_proj"], "gpt2": ["c_attn"]}


@pytest.fixture
def folder(tiny_causal: Any, request: pytest.FixtureRequest) -> Path:
    return tiny_causal(request.param)


def quiet(**more: Any) -> Trainer:
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return Trainer(**{**settings, **more})


def example(length: int, answer: int, width: int, seed: int) -> dict[str, Tensor]:
    """One example of ``length`` tokens, its last ``answer`` the targets, padded to ``width``."""
    ids = torch.randint(5, 40, (length,), generator=torch.Generator().manual_seed(seed))
    labels = torch.cat([torch.full((length - answer,), -100), ids[-answer:]])
    pad = width - length
    return {
        "input_ids": nn.functional.pad(ids, (0, pad)),
        "attention_mask": nn.functional.pad(torch.ones(length, dtype=torch.long), (0, pad)),
        "labels": nn.functional.pad(labels, (0, pad), value=-100),
    }


def batch(*lengths: tuple[int, int], seed: int = 0) -> dict[str, Tensor]:
    rows = [example(*one, max(length for length, _ in lengths), seed + at) for at, one in enumerate(lengths)]
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


MICRO = [
    batch((6, 2), (9, 5), seed=10),
    batch((12, 11), (3, 1), seed=20),
    batch((4, 1), (5, 2), seed=30),
    batch((20, 17), seed=40),  # an epoch's last step, of one micro-batch alone
]


class Descent(CausalLM):
    """Plain gradient descent, so that a step is its gradient; dropout is off."""

    def configure_model(self) -> None:
        super().configure_model()
        self._network().eval()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([value for value in self.parameters() if value.requires_grad], lr=0.5)


def descended(folder: Path, micro: list[dict[str, Tensor]], **trainer: Any) -> dict[str, Tensor]:
    module = Descent(str(folder), verify=False)
    quiet(max_epochs=1, **trainer).fit(module, DataLoader(micro, batch_size=None, shuffle=False))
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def by_hand(folder: Path, windows: list[list[dict[str, Tensor]]]) -> dict[str, Tensor]:
    """The same with the mean over each window's targets written out, token by token."""
    network = AutoModelForCausalLM.from_pretrained(folder).eval()
    for window in windows:
        network.zero_grad()
        losses = []
        for one in window:
            for ids, mask, labels in zip(one["input_ids"], one["attention_mask"], one["labels"], strict=True):
                logits = network(input_ids=ids[mask == 1][None]).logits[0].log_softmax(-1)
                losses += [-logits[at - 1, token] for at, token in enumerate(labels.tolist()) if token != -100]
        torch.stack(losses).mean().backward()
        with torch.no_grad():
            for value in network.parameters():
                value -= 0.5 * value.grad
    return {f"model.{name}": value.detach() for name, value in network.named_parameters()}


@pytest.mark.parametrize("folder", KINDS, indirect=True)
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_token_weighs_the_same_in_every_micro_batch(folder: Path, accumulate: int) -> None:
    windows = [MICRO[:3], MICRO[3:]] if accumulate == 3 else [[one] for one in MICRO]
    found = descended(folder, MICRO, accumulate_grad_batches=accumulate)
    wanted = by_hand(folder, windows)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.allclose(found[name], value, atol=1e-5), name
    unlike = by_hand(folder, [[one] for one in MICRO] if accumulate == 3 else [MICRO[:3], MICRO[3:]])
    assert any((unlike[name] - value).abs().max() > 1e-3 for name, value in wanted.items())


@pytest.mark.parametrize("folder", ["llama"], indirect=True)
def test_clipping_sees_the_mean_gradient(folder: Path) -> None:
    """Of a norm far above the limit, so that the step's length is the limit times the rate."""
    before = {f"model.{n}": v.clone() for n, v in AutoModelForCausalLM.from_pretrained(folder).named_parameters()}
    for limit in (0.01, 0.02):
        found = descended(folder, MICRO[:3], accumulate_grad_batches=3, gradient_clip_val=limit)
        moved = torch.cat([(found[name] - before[name]).detach().reshape(-1) for name in found]).norm()
        assert abs(float(moved) - 0.5 * limit) < 1e-5


@pytest.mark.parametrize("folder", ["llama"], indirect=True)
def test_the_validation_loss_and_perplexity_are_by_tokens(folder: Path) -> None:
    module = CausalLM(str(folder), verify=False)
    (found,) = quiet().validate(module, DataLoader(MICRO, batch_size=None), verbose=False)
    network, losses = AutoModelForCausalLM.from_pretrained(folder).eval(), []
    for one in MICRO:
        logits = network(input_ids=one["input_ids"], attention_mask=one["attention_mask"]).logits.log_softmax(-1)
        for row, labels in zip(logits, one["labels"].tolist(), strict=True):
            losses += [-row[at - 1, token].item() for at, token in enumerate(labels) if token != -100]
    assert len(losses) == 39
    assert found["val/loss"] == pytest.approx(sum(losses) / 39, abs=1e-5)
    assert found["val/perplexity"] == pytest.approx(torch.tensor(sum(losses) / 39).exp().item(), rel=1e-4)


# Generation

PROMPTS = ["one two", "three", "four five six seven eight nine ten", "two two two one"]


def prompts(folder: Path, texts: list[str], **more: Any) -> dict[str, Any]:
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    encoded = tokenizer(texts, return_tensors="pt", padding=True)
    return {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"], **more}


def trained(folder: Path, kind: str, **more: Any) -> tuple[CausalLM, GPartCallback]:
    """A model with an adapter whose theta is large enough to change what is generated."""
    module, callback = CausalLM(str(folder), verify=False, **more), GPartCallback(d=50, target_modules=TARGETS[kind])
    quiet(max_steps=1, callbacks=[callback]).fit(module, DataLoader(MICRO, batch_size=None))
    torch.manual_seed(1)
    nn.init.normal_(callback.adapter.theta, std=1.5)
    module.eval()
    return module, callback


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_generates_what_each_prompt_gives_alone(kind: str, tiny_causal: Any) -> None:
    folder = tiny_causal(kind)
    module = CausalLM(str(folder), max_new_tokens=12, verify=False)
    module.configure_model()
    module.eval()
    together = module.generate(prompts(folder, PROMPTS))
    assert together == [module.generate(prompts(folder, [one]))[0] for one in PROMPTS]
    assert len(set(together)) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_adapter_generates_what_merged_weights_do(kind: str, tiny_causal: Any) -> None:
    folder = tiny_causal(kind)
    module, callback = trained(folder, kind, max_new_tokens=12)
    batch_ = prompts(folder, PROMPTS)
    with_adapter = module.generate(batch_)
    with callback.adapter.cached():
        assert module.generate(batch_) == with_adapter
    with callback.adapter.disabled():
        assert module.generate(batch_) != with_adapter
    callback.adapter.merge_and_unload()
    assert module.generate(batch_) == with_adapter


class Says(nn.Module):
    """Stands for a network: it continues each prompt by given tokens."""

    def __init__(self, network: Any, rows: list[list[int]]) -> None:
        super().__init__()
        self.generation_config, self.rows = network.generation_config, torch.tensor(rows)
        self.asked: dict[str, Any] = {}

    def generate(self, input_ids: Tensor, **more: Any) -> Tensor:
        self.asked = more
        return torch.cat([input_ids, self.rows], 1)


def test_an_output_ends_at_its_end_token_and_before_the_stop_string(tiny_causal: Any) -> None:
    folder = tiny_causal("llama")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    words = tokenizer("one two three four", add_special_tokens=False)["input_ids"]
    end = tokenizer.eos_token_id
    network = AutoModelForCausalLM.from_pretrained(folder)
    rows = [[words[0], words[1], end, words[3]], words]
    outputs, tokens, seconds = Generator(str(folder), ("three",))(
        said := Says(network, rows), *prompts(folder, ["one", "one"]).values(), 4
    )
    assert [output.rstrip() for output in outputs] == ["one two", "one two"]
    assert tokens == 2 + 4
    assert seconds > 0
    assert said.asked["max_new_tokens"] == 4
    assert said.asked["do_sample"] is False
    assert said.asked["stop_strings"] == ["three"]


def test_each_benchmark_has_its_own_limit_of_tokens(tiny_causal: Any) -> None:
    folder = tiny_causal("llama")
    module = CausalLM(str(folder), max_new_tokens={"gsm8k": 3, "math": 7}, verify=False)
    module.configure_model()
    said = Says(module._network(), [[5], [5]])
    module.model = said
    asked = []
    for names in (["gsm8k"] * 2, ["math"] * 2, ["gsm8k", "math"], ["own", "own"], ["gsm8k_train"] * 2):
        module.generate({**prompts(folder, ["one", "two"]), "benchmark": names})
        asked.append(said.asked["max_new_tokens"])
    module.generate(prompts(folder, ["one", "two"]))
    assert [*asked, said.asked["max_new_tokens"]] == [3, 7, 7, 7, 7, 7]


def test_a_model_that_samples_by_its_own_config_is_greedy_here(tiny_causal: Any) -> None:
    folder = tiny_causal("llama")
    module = CausalLM(str(folder), max_new_tokens=12, verify=False)
    module.configure_model()
    module.eval()
    wanted = module.generate(prompts(folder, PROMPTS))
    module._network().generation_config.update(do_sample=True, temperature=5.0, top_k=40)
    for _ in range(3):
        assert module.generate(prompts(folder, PROMPTS)) == wanted


# Scores


QUESTIONS = {
    "idx": [4, 7, 9, 4],
    "question": ["a", "b", "c", "a"],
    "reference": ["two plus two\n#### 4", "x\n#### 1,000", "#### 5", "two plus two\n#### 4"],
    "benchmark": ["gsm8k"] * 4,
    "repeated": [False, False, False, True],
}
OUTPUTS = ["so #### 4", "The answer is: 1000.0", "it is 5", "#### 4"]


class Answers(CausalLM):
    """Its outputs are given."""

    def _generate(self, batch: dict[str, Any]) -> tuple[list[str], int, float]:
        return OUTPUTS, 30, 2.0


@pytest.mark.parametrize("stage", ["validate", "test"])
@pytest.mark.parametrize("verify", [True, False])
def test_each_question_counts_once_and_every_output_is_written(
    stage: str, verify: bool, tiny_causal: Any, tmp_path: Path
) -> None:
    module = Answers(str(tiny_causal("llama")), verify=verify)
    trainer = quiet(default_root_dir=tmp_path)
    for _ in range(2):  # the second run's file is not added to the first one's
        (found,) = getattr(trainer, stage)(module, DataLoader([QUESTIONS], batch_size=None), verbose=False)
    prefix = "val" if stage == "validate" else "test"
    assert found[f"{prefix}/gsm8k/exact_match"] == pytest.approx(2 / 3)
    assert found[f"{prefix}/gsm8k/tokens_per_second"] == 15
    assert (f"{prefix}/gsm8k/verified_match" in found) is verify
    if verify:
        assert found[f"{prefix}/gsm8k/verified_match"] == 1
    path = tmp_path / "generations" / f"{prefix}-gsm8k.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["idx"] for row in rows] == [4, 7, 9]
    assert rows[1]["output"] == "The answer is: 1000.0"
    assert [(row["extracted"], row["gold"], row["exact_match"]) for row in rows] == [
        ("4", "4", True),
        ("1000.0", "1,000", True),
        (None, "5", False),
    ]


def test_a_reference_without_an_answer_is_named_with_its_row_and_file() -> None:
    rows = {"idx": [8, 3], "question": ["a", "b"], "reference": ["#### 4", "no idea"]}
    with pytest.raises(GPartError, match=r"^row 3 \(from 0\) of own\.jsonl has no final answer .* 'no idea'; it must"):
        judge({**rows, "place": ["other", "own.jsonl"]}, ["#### 4", "#### 4"], verify=False)
    with pytest.raises(GPartError, match=r"^row 3 \(from 0\) has no final answer"):  # a loader of one's own
        judge(rows, ["#### 4", "#### 4"], verify=False)


def test_predictions_hold_output_and_answer(tiny_causal: Any) -> None:
    module = Answers(str(tiny_causal("llama")), verify=False)
    found = module.predict_step({"question": ["a", "b", "c", "d"]}, 0)
    assert found == {
        "question": ["a", "b", "c", "d"],
        "output": OUTPUTS,
        "answer": ["4", "1000.0", None, "4"],
    }
    # A rank's last question may be another one's, which only fills up its share.
    again = module.predict_step({"idx": [0, 2, 4, 4], "repeated": [False, False, False, True]}, 0)
    assert again == {"idx": [0, 2, 4], "output": OUTPUTS[:3], "answer": ["4", "1000.0", None]}


# The network


@pytest.mark.parametrize(("precision", "dtype"), [("32-true", torch.float32), ("bf16-true", torch.bfloat16)])
def test_weights_are_in_the_trainers_precision(precision: str, dtype: torch.dtype, tiny_causal: Any) -> None:
    """Whatever the checkpoint's, which is bfloat16 here."""
    folder = tiny_causal("llama", dtype=torch.bfloat16)
    module, callback = CausalLM(str(folder), verify=False), GPartCallback(d=50, target_modules=["q_proj"])
    quiet(max_steps=2, precision=precision, callbacks=[callback]).fit(module, DataLoader(MICRO, batch_size=None))
    assert module._network().lm_head.weight.dtype == dtype
    assert callback.adapter.theta.dtype == torch.float32
    assert callback.adapter.theta.count_nonzero() > 0


def test_gradient_checkpointing_gives_the_same_step(tiny_causal: Any) -> None:
    folder = tiny_causal("llama")
    steps = []
    for checkpointing in (False, True):
        module = CausalLM(str(folder), verify=False, gradient_checkpointing=checkpointing, warmup_ratio=0, lr=0.1)
        callback = GPartCallback(d=50, target_modules=["q_proj"])
        torch.manual_seed(0)
        quiet(max_steps=2, callbacks=[callback]).fit(module, DataLoader(MICRO, batch_size=None))
        assert module._network().is_gradient_checkpointing is checkpointing
        steps.append(callback.adapter.theta.detach().clone())
    assert torch.allclose(*steps, atol=1e-5)
    assert steps[0].count_nonzero() > 0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_a_compiled_network_takes_the_same_steps_and_answers_the_same(tiny_causal: Any) -> None:
    folder = tiny_causal("llama")
    found = []
    for compiled in (False, True):
        module = CausalLM(str(folder), verify=False, compile=compiled, warmup_ratio=0, lr=0.1, max_new_tokens=4)
        callback = GPartCallback(d=50, target_modules=["q_proj"])
        torch.manual_seed(0)
        quiet(max_steps=2, callbacks=[callback]).fit(module, DataLoader(MICRO[:2], batch_size=None))
        assert (module._network()._compiled_call_impl is not None) is compiled
        module.eval()
        found.append((callback.adapter.theta.detach().clone(), module.generate(prompts(folder, PROMPTS[:2]))))
    assert torch.allclose(found[0][0], found[1][0], atol=1e-4)
    assert found[0][0].count_nonzero() > 0
    assert found[0][1] == found[1][1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        (
            {"max_new_tokens": {"math": 5, "gsm8k": 0}},
            r"max_new_tokens must be at least 1, got \{'math': 5, 'gsm8k': 0\}",
        ),
        ({"max_new_tokens": {}}, r"max_new_tokens must be at least 1, got \{\}"),
        ({"schedule": "sine"}, "schedule must be one of .*'sine'"),
        ({"warmup_ratio": 1.5}, "warmup_ratio must be from 0 to 1, got 1.5"),
        ({"quantization": "int2"}, r"quantization must be one of \['int8', 'int4'\] or None, got 'int2'"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(GPartError, match=message):
        CausalLM("nowhere", verify=False, **settings)


def test_the_choices_in_the_help_are_the_quantizations() -> None:
    assert get_args(Quantization) == tuple(QUANTIZATIONS)
    assert get_type_hints(CausalLM.__init__)["quantization"] == Quantization | None


@pytest.mark.parametrize("content", [b"GGUFxxxx", b"no GGUF" * 9])
def test_a_damaged_gguf_file_is_named(content: bytes, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    path = tmp_path / "damaged.gguf"
    path.write_bytes(content)
    with pytest.raises(GPartError, match=r"model '.*damaged\.gguf' can't be loaded: "):
        CausalLM(str(path), verify=False).configure_model()


def test_a_quantization_that_cannot_be_is_refused(
    tiny_causal: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torchao")
    folder = str(tiny_causal("llama"))
    (tmp_path / "some.gguf").touch()
    with pytest.raises(GPartError, match=r"some\.gguf has its own quantization and is unpacked; got 'int8' too"):
        CausalLM(str(tmp_path), verify=False, quantization="int8").configure_model()
    with monkeypatch.context() as patched:
        patched.setattr(language_models, "_torchao", lambda quantization: None)
        with pytest.raises(GPartError, match=f"torchao has packed no weight of '{folder}' as int8"):
            CausalLM(folder, verify=False, quantization="int8").configure_model()

    def fail(*words: Any, **settings: Any) -> None:
        raise NotImplementedError("no such kernel")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(GPartError, match=f"torchao cannot keep '{folder}' as int8 on this machine: no such kernel"):
        CausalLM(folder, verify=False, quantization="int8").configure_model()
    with pytest.raises(NotImplementedError, match=r"^no such kernel$"):  # not torchao's then, but a fault
        CausalLM(folder, verify=False).configure_model()
    monkeypatch.setattr(language_models, "find_spec", lambda name: None)
    with pytest.raises(GPartError, match=r"torchao's, which is missing: pip install 'gpart-lightning\[quantization\]'"):
        CausalLM(folder, verify=False, quantization="int8")


@pytest.mark.parametrize("module", [CausalLM, ImageClassifier, SequenceClassifier])
def test_a_network_that_is_not_built_is_named(module: type) -> None:
    more = {"verify": False} if module is CausalLM else {}
    with pytest.raises(GPartError, match=r"the network is not built yet: call configure_model\(\) first"):
        module(**more)._network()


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    module = CausalLM(str(tmp_path / "none"), verify=False)
    with pytest.raises(GPartFileError, match="none"):
        module.configure_model()


def test_a_gguf_file_is_unpacked_and_trains(tiny_causal: Any, tmp_path: Path) -> None:
    """Not kept in its blocks, which no gradient reaches; the file is made from the tiny Llama by the gguf package."""
    pytest.importorskip("gguf")
    path = tiny_causal.gguf(tmp_path / "tiny.gguf")
    module, callback = CausalLM(str(path), verify=False), GPartCallback(d=50, target_modules=["q_proj"])
    quiet(max_steps=2, callbacks=[callback]).fit(module, DataLoader(MICRO, batch_size=None))
    network = module._network()
    assert getattr(network.config, "quantization_config", None) is None
    assert callback.adapter.theta.count_nonzero() > 0
    original = AutoModelForCausalLM.from_pretrained(tiny_causal("llama"))
    ids = MICRO[3]["input_ids"]
    with torch.no_grad(), callback.adapter.disabled():
        found, wanted = network.eval()(ids).logits, original.eval()(ids).logits
    assert (found - wanted).norm() < 0.02 * wanted.norm()  # eight bits a weight
    assert not torch.equal(found, wanted)


# Two processes

WORKER = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
import torch
from torch.utils.data import DataLoader
from lightning.pytorch import Trainer
from tests_causal import MICRO, Descent

folder, out = sys.argv[1], Path(sys.argv[2])
trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", max_epochs=1, accumulate_grad_batches=2, logger=False,
    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False)
class Mine(Descent):
    def train_dataloader(self):
        own = [MICRO[0], MICRO[1]] if self.trainer.global_rank == 0 else [MICRO[2], MICRO[3]]
        return DataLoader(own, batch_size=None)
module = Mine(folder, verify=False)
trainer.fit(module)
torch.save({name: value.detach() for name, value in module.named_parameters()}, out / f"{trainer.global_rank}.pt")
"""


@pytest.mark.slow  # two processes
def test_two_processes_take_the_step_of_all_their_tokens(tiny_causal: Any, tmp_path: Path) -> None:
    folder = tiny_causal("llama")
    (tmp_path / "tests_causal.py").write_text(Path(__file__).read_text())
    (tmp_path / "worker.py").write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, str(tmp_path / "worker.py"), str(folder), str(tmp_path), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    wanted = by_hand(folder, [MICRO])
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, value in wanted.items():
            assert torch.allclose(found[name], value, atol=1e-5), name
