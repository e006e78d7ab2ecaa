"""Answers by vLLM, of which a package with its interface takes the place: the same outputs as by Transformers."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import nn
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from gpart import GPartConfig, attach
from gpart.callbacks import BitFit, FullFineTuning, GPartCallback, PeftCallback
from gpart.errors import GPartError
from gpart.lightning_modules import CausalLM
from gpart.lightning_modules.mathematics import vllm_engine
from gpart.lightning_modules.mathematics.vllm_engine import Answered, Method, batches_of

STUBS = Path(__file__).parents[2] / "helpers" / "stubs"
PROMPTS = [["one two", "three", "four five six seven eight"], ["two two two one", "nine"]]
TARGETS = {"llama": ["q_proj", "v_proj"], "gpt2": ["c_attn"]}


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The package in vLLM's place; temporary folders are made in ``tmp_path/temporary``."""
    monkeypatch.syspath_prepend(str(STUBS))
    monkeypatch.delitem(sys.modules, "vllm", raising=False)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    import vllm as stub

    yield stub
    sys.modules.pop("vllm", None)


def quiet(folder: Path, *callbacks: Callback, **more: Any) -> Trainer:
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "default_root_dir": folder,
        "callbacks": list(callbacks),
    }
    return Trainer(**{**settings, **more})


def questions(folder: Path, benchmark: str, texts: list[str], first: int, reference: str = "#### 4") -> dict[str, Any]:
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    encoded = tokenizer(texts, return_tensors="pt", padding=True)
    return {
        "input_ids": encoded["input_ids"],
        "attention_mask": encoded["attention_mask"],
        "idx": list(range(first, first + len(texts))),
        "question": texts,
        "reference": [reference] * len(texts),
        "benchmark": [benchmark] * len(texts),
        "place": [f"{benchmark}.jsonl"] * len(texts),
        "repeated": [False] * len(texts),
    }


def loaders(folder: Path, **more: Any) -> list[DataLoader[Any]]:
    """Two benchmarks: one of two batches, one of one, that asks a question of the first again."""
    of = [questions(folder, "gsm8k", texts, 10 * at, **more) for at, texts in enumerate(PROMPTS)]
    last = questions(folder, "math", ["three", "seven one"], 5, **more)
    return [DataLoader(of, batch_size=None), DataLoader([last], batch_size=None)]


def taught(folder: Path, work: Path, *callbacks: Callback, **trainer: Any) -> CausalLM:
    """A model that three steps have changed so much that it says something else; without callbacks, as it is."""
    lora = any(getattr(callback, "peft_type", "") == "LORA" for callback in callbacks)
    lr = 1e-3 if lora else 0.1  # LoRA's factors begin large here
    module = CausalLM(str(folder), lr=lr, warmup_ratio=0, max_new_tokens=5, verify=False, engine="vllm")
    ids = torch.randint(5, 40, (4, 9), generator=torch.Generator().manual_seed(3))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    if callbacks:
        quiet(work, *callbacks, max_steps=3, **trainer).fit(module, DataLoader([batch] * 3, batch_size=None))
    return module


def scored(module: CausalLM, engine: str, work: Path, *callbacks: Callback, **trainer: Any) -> Any:
    """The scores and the lines of the outputs' files."""
    module.hparams["engine"] = engine
    trainer = quiet(work / engine, *callbacks, **trainer)
    found = trainer.test(module, loaders(Path(module.hparams["model"])), verbose=False)
    scores = {name: value for one in found for name, value in one.items() if "per_second" not in name}
    paths = sorted((work / engine / "generations").iterdir())
    assert [path.name for path in paths] == ["test-gsm8k.jsonl", "test-math.jsonl"]
    return scores, [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def peft(kind: str, name: str, **settings: Any) -> PeftCallback:
    return PeftCallback(name, TARGETS[kind], settings=settings)


METHODS: dict[str, Any] = {
    "none": lambda kind: [],
    "gpart": lambda kind: [GPartCallback(d=50, target_modules=TARGETS[kind], dropout=0.1)],
    "two adapters": lambda kind: [
        GPartCallback(d=50, target_modules=TARGETS[kind], seed=at, name=name) for at, name in enumerate("ab")
    ],
    "full": lambda kind: [FullFineTuning()],
    "lora": lambda kind: [peft(kind, "LORA", r=4, init_lora_weights=False)],
    "dora": lambda kind: [peft(kind, "LORA", r=4, use_dora=True, init_lora_weights=False)],
    "vera": lambda kind: [peft(kind, "VERA", r=8, d_initial=1.0, init_weights=False)],
    "uni-lora": lambda kind: [peft(kind, "UNILORA", r=4, theta_d_length=64)],
}


@pytest.fixture(scope="session")
def folders(tiny_causal: Any, math_folders: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A GPT-2 with a tokenizer of words, and a Llama with one of bytes, which can look for stop strings."""
    tokenizer = math_folders.tokenizer(tmp_path_factory.mktemp("bytes") / "llama")
    return {"llama": tiny_causal.with_tokenizer(tokenizer), "gpt2": tiny_causal("gpt2")}


@pytest.mark.parametrize(
    ("method", "kind"), [*((method, "llama") for method in METHODS), ("gpart", "gpt2"), ("lora", "gpt2")]
)
def test_the_outputs_are_those_of_transformers(
    method: str, kind: str, folders: dict[str, Path], vllm: Any, tmp_path: Path, state_of: Any
) -> None:
    callbacks = METHODS[method](kind)
    module = taught(folders[kind], tmp_path, *callbacks)
    wanted = scored(module, "transformers", tmp_path, *callbacks)
    before = state_of(module)
    assert scored(module, "vllm", tmp_path, *callbacks) == wanted
    before.assert_kept()
    assert len({row["output"] for row in wanted[1]}) > 1
    if callbacks:  # it is not the base model that was asked
        assert scored(taught(folders[kind], tmp_path), "transformers", tmp_path / "base")[1] != wanted[1]
    assert list((tmp_path / "temporary").iterdir()) == []
    assert not vllm.LLM.alive


@pytest.fixture
def asked(folders: dict[str, Path]) -> Any:
    """A model of vLLM's engine that is not trained."""
    return lambda kind="llama", **more: CausalLM(
        str(folders[kind]), **{"max_new_tokens": 5, "verify": False, "engine": "vllm", **more}
    )


def test_stop_strings_and_end_tokens_end_an_output(
    folders: dict[str, Path], vllm: Any, tmp_path: Path, asked: Any
) -> None:
    """Of a copy whose generation config ends at a token that it says, and punishes what it has said."""
    free = scored(asked(max_new_tokens=12), "transformers", tmp_path / "free")[1]
    tokenizer = AutoTokenizer.from_pretrained(folders["llama"])
    network = AutoModelForCausalLM.from_pretrained(folders["llama"])
    said = tokenizer(free[0]["output"], add_special_tokens=False)["input_ids"]
    changed = tmp_path / "changed"
    tokenizer.save_pretrained(changed)
    network.generation_config = GenerationConfig(eos_token_id=[2, said[3]], pad_token_id=0, repetition_penalty=1.3)
    network.save_pretrained(changed)
    stop = [free[1]["output"][5:7], "no such text"]
    module = CausalLM(str(changed), max_new_tokens=12, stop=stop, verify=False, engine="vllm")
    wanted = scored(module, "transformers", tmp_path)
    assert scored(module, "vllm", tmp_path) == wanted
    assert [row["output"] for row in wanted[1]] != [row["output"] for row in free]
    [(_, each)] = vllm.LLM.calls
    params = each[0]
    assert all(one == params for one in each)
    assert (params.stop, params.stop_token_ids, params.repetition_penalty) == (stop, sorted({2, said[3]}), 1.3)
    assert (params.temperature, params.max_tokens, params.skip_special_tokens) == (0, 12, True)


def test_all_questions_are_handed_over_once_and_as_they_are(vllm: Any, tmp_path: Path, asked: Any) -> None:
    module = asked(engine_settings={"gpu_memory_utilization": 0.5})
    scored(module, "vllm", tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(module.hparams["model"])
    texts = [*PROMPTS[0], *PROMPTS[1], "seven one"]  # "three" is asked by both benchmarks
    [(prompts, _)], [made] = vllm.LLM.calls, vllm.LLM.made
    assert prompts == [tokenizer(text)["input_ids"] for text in texts]
    assert made["max_model_len"] == max(map(len, prompts)) + 5
    assert (made["dtype"], made["seed"], made["gpu_memory_utilization"]) == ("float32", 0, 0.5)
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"} <= set(made["files"])
    assert Path(made["model"]).parent == tmp_path / "temporary"


def test_each_benchmark_has_its_own_limit_of_tokens(vllm: Any, tmp_path: Path, asked: Any) -> None:
    """One question is asked by both."""
    module = asked(max_new_tokens={"gsm8k": 2, "math": 6})
    wanted = scored(module, "transformers", tmp_path)
    assert scored(module, "vllm", tmp_path) == wanted
    [(prompts, params)] = vllm.LLM.calls
    assert {one.max_tokens for one in params} == {2, 6}
    assert len(prompts) == len({tuple(prompt) for prompt in prompts}) + 1


def test_a_limit_of_batches_holds(vllm: Any, tmp_path: Path, asked: Any) -> None:
    module = asked()
    quiet(tmp_path, limit_test_batches=1).test(module, loaders(Path(module.hparams["model"])), verbose=False)
    [(prompts, _)] = vllm.LLM.calls
    assert len(prompts) == 4  # three and two, of which one is asked twice


def test_it_takes_the_precision_of_the_weights(vllm: Any, tmp_path: Path, asked: Any) -> None:
    module = asked()
    wanted = scored(module, "transformers", tmp_path, precision="bf16-true")
    assert scored(module, "vllm", tmp_path, precision="bf16-true") == wanted
    assert vllm.LLM.made[0]["dtype"] == "bfloat16"


def test_predict_is_by_vllm_and_validation_is_not(vllm: Any, tmp_path: Path, asked: Any) -> None:
    module = asked()
    batch = questions(Path(module.hparams["model"]), "own", PROMPTS[0], 0)
    del batch["reference"]
    found = quiet(tmp_path).predict(module, DataLoader([batch], batch_size=None))
    assert len(vllm.LLM.calls) == 1
    by_transformers = module.generate(batch)
    assert found == [
        {
            "idx": [0, 1, 2],
            "question": PROMPTS[0],
            "output": by_transformers,
            "answer": [None] * 3,
        }
    ]
    quiet(tmp_path).validate(module, loaders(Path(module.hparams["model"])), verbose=False)
    assert len(vllm.LLM.calls) == 1
    module._answered = None
    with pytest.raises(GPartError, match="this is a batch of 3 alone"):
        module.predict_step(batch, 0)


@pytest.mark.parametrize("fails", ["init", "generate"])
def test_nothing_is_left_after_an_error(
    fails: str, vllm: Any, tmp_path: Path, asked: Any, state_of: Any, folders: dict[str, Path]
) -> None:
    module, callback = asked(), GPartCallback(d=50, target_modules=TARGETS["llama"])
    quiet(tmp_path, callback).validate(module, loaders(folders["llama"]), verbose=False)
    nn.init.normal_(callback.adapter.theta)
    module.eval()  # as Lightning leaves it after an error
    before, vllm.LLM.fails = state_of(module), fails
    error: type[BaseException] = GPartError if fails == "init" else SystemExit  # Lightning's, of Ctrl-C
    with pytest.raises(error, match="vLLM refuses .*'float32'.*: Free memory" if fails == "init" else ""):
        quiet(tmp_path, callback).test(module, loaders(folders["llama"]), verbose=False)
    before.assert_kept()
    assert len(vllm.LLM.made) == 1
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_bad_reference_is_named_before_anything_is_generated(vllm: Any, tmp_path: Path, asked: Any) -> None:
    module = asked()
    with pytest.raises(GPartError, match=r"row 0 \(from 0\) of gsm8k\.jsonl has no final answer"):
        quiet(tmp_path).test(module, loaders(Path(module.hparams["model"]), reference="so"), verbose=False)
    assert not vllm.LLM.made


def test_a_network_that_is_not_plain_is_refused(
    vllm: Any, tmp_path: Path, asked: Any, folders: dict[str, Path]
) -> None:
    """An adapter that no callback knows would be left out silently."""
    module = asked()
    module.configure_model()
    adapter = attach(module.model, GPartConfig(d=50, target_modules=TARGETS["llama"]))
    with pytest.raises(
        GPartError, match=r"has \['gpart\.default\.theta'\] beside a plain one's weights, and lacks \[\]"
    ):
        quiet(tmp_path).test(module, loaders(folders["llama"]), verbose=False)
    adapter.merge()
    quiet(tmp_path).test(module, loaders(folders["llama"]), verbose=False)  # by hand it may be
    adapter.detach()
    module.beside = nn.Linear(2, 2)
    with pytest.raises(GPartError, match=r"has \['beside\.weight', 'beside\.bias'\] beside"):
        quiet(tmp_path).test(module, loaders(folders["llama"]), verbose=False)
    assert len(vllm.LLM.made) == 1
    assert list((tmp_path / "temporary").iterdir()) == []


def test_what_peft_cannot_merge_is_said(
    vllm: Any, tmp_path: Path, asked: Any, monkeypatch: pytest.MonkeyPatch, folders: dict[str, Path]
) -> None:
    module, callback = asked(), peft("llama", "LORA", r=2)

    def refuse(*given: Any, **more: Any) -> Any:
        raise ValueError("not this one")

    monkeypatch.setattr("peft.tuners.lora.layer.Linear.merge", refuse)
    with pytest.raises(GPartError, match="PEFT cannot merge LORA into a plain network: not this one"):
        quiet(tmp_path, callback).test(module, loaders(folders["llama"]), verbose=False)


def test_a_text_longer_than_the_models_positions_is_refused(
    vllm: Any, tmp_path: Path, asked: Any, folders: dict[str, Path]
) -> None:
    positions = AutoModelForCausalLM.from_pretrained(folders["llama"]).config.max_position_embeddings
    module = asked(max_new_tokens=positions)
    with pytest.raises(GPartError, match=rf"max_new_tokens={positions} are \d+ tokens, .* the model's {positions} pos"):
        quiet(tmp_path).test(module, loaders(folders["llama"]), verbose=False)
    assert not vllm.LLM.made


@pytest.mark.parametrize("hook", ["on_fit_start", "on_test_start", "on_predict_start"])
def test_several_processes_are_refused(hook: str, vllm: Any, asked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = asked()
    module._trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    monkeypatch.setattr(Trainer, "world_size", 2)
    with pytest.raises(GPartError, match=r"from 1 process, and the trainer has 2: .*tensor_parallel_size"):
        getattr(module, hook)()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"engine": "sglang"}, r"one of \['transformers', 'vllm'\], got 'sglang'"),
        ({"engine": "transformers", "engine_settings": {"a": 1}}, r"engine is 'transformers': got \{'a': 1\}"),
        ({"engine_settings": {"model": "x", "seed": 1}}, r"but \['model', 'seed'\], which are set here"),
        ({"quantization": "int8"}, "which quantization='int8' would round"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    settings: dict[str, Any], said: str, vllm: Any, asked: Any
) -> None:
    with pytest.raises(GPartError, match=said):
        asked(**settings)


def test_without_the_package_it_is_said(asked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_engine, "find_spec", lambda name: None)
    with pytest.raises(GPartError, match=r"pip install 'gpart-lightning\[vllm\]'"):
        asked()


def test_a_setting_that_vllm_does_not_know_is_said(vllm: Any, tmp_path: Path, asked: Any) -> None:
    module = asked(engine_settings={"gpu_memory": 1})
    with pytest.raises(GPartError, match=r"vLLM refuses .*'gpu_memory': 1.*: .*unexpected keyword"):
        quiet(tmp_path).test(module, loaders(Path(module.hparams["model"])), verbose=False)


def test_the_module_leaves_the_gpu_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a module that only says what is asked of it: there is no GPU here."""
    told: list[str] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: told.append("empty"))

    class Module:
        device = torch.device("cuda", 1)

        def to(self, device: Any) -> None:
            told.append(str(device))

    with vllm_engine._off_the_gpu(Module()):
        told.append("vllm")
    assert told == ["cpu", "empty", "vllm", "empty", "cuda:1"]
    told.clear()
    with pytest.raises(KeyError), vllm_engine._off_the_gpu(Module()):
        raise KeyError
    assert told[-1] == "cuda:1"
    Module.device = torch.device("cpu")
    told.clear()
    with vllm_engine._off_the_gpu(Module()):
        pass
    assert told == []


def test_a_batch_that_was_not_handed_over_is_named() -> None:
    answered = Answered({((1, 2), 5): ("a", 3), ((4,), 5): ("b", 1)}, rate=2.0)
    batch = {"input_ids": torch.tensor([[0, 4], [1, 2]]), "attention_mask": torch.tensor([[0, 1], [1, 1]])}
    assert answered.of(batch, 5) == (["b", "a"], 4, 2.0)
    with pytest.raises(GPartError, match="1 of 2 prompts were not among the 2 that vLLM was given"):
        answered.of({**batch, "attention_mask": torch.ones(2, 2, dtype=torch.long)}, 5)
    with pytest.raises(GPartError, match="2 of 2 prompts were not among the 2 that vLLM was given"):
        answered.of(batch, 6)


def test_the_batches_are_those_of_the_loop() -> None:
    assert batches_of([[1, 2, 3], [4, 5]], [2, float("inf")]) == [1, 2, 4, 5]
    assert batches_of([6, 7], [1]) == [6]


def test_every_method_says_what_it_is_without_itself() -> None:
    for callback in (FullFineTuning(), BitFit(), peft("llama", "LORA", r=1), GPartCallback(d=1, target_modules=["a"])):
        assert isinstance(callback, Method)
    assert not isinstance(Callback(), Method)
