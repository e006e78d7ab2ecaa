"""Shared by all tests: two threads (one where two workers share the cores), a fixed seed, no hub."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test needs a network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # forked loaders warn otherwise

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start, too

import numpy as np
import pytest
import torch

torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


_HELPERS = Path(__file__).parent / "helpers"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _reference_groups(size: int, d: int, seed: int) -> np.ndarray:
    """The scheme gpart-v1 from its formulas in unsigned 64-bit numpy, sharing no line with gpart."""
    z, x = [], seed
    for _ in range(12):
        x = (x + 0x9E3779B97F4A7C15) % 2**64
        y = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) % 2**64
        y = ((y ^ y >> 27) * 0x94D049BB133111EB) % 2**64
        z.append(np.uint64(y ^ y >> 31))
    k = max(8, (size - 1).bit_length())
    mask = np.uint64(2**k - 1)

    def mix(x: np.ndarray) -> np.ndarray:
        for r in range(6):
            x = (x * (z[2 * r] | np.uint64(1)) + z[2 * r + 1]) & mask
            x = x ^ (x >> np.uint64(k // 3 if r % 2 else k // 2))
        return x

    x = mix(np.arange(size, dtype=np.uint64))
    while (outside := x >= size).any():
        x[outside] = mix(x[outside])
    return (x % np.uint64(d)).astype(np.int64)


class DenseReference:
    """The method by its formulas in float64 and numpy: P·theta and Pᵀ·g over the whole flat vector of length D.

    ``entries`` is the flat vector's order as the test states it: (parameter name, index into the parameter) pairs,
    each block joined row-major.
    """

    def __init__(self, size: int, d: int, seed: int = 0, isometric: bool = True) -> None:
        self.d, self.groups = d, _reference_groups(size, d, seed)
        counts = np.bincount(self.groups, minlength=d)
        self.factor = 1 / np.sqrt(counts) if isometric else np.ones(d)

    def expand(self, theta: torch.Tensor) -> np.ndarray:
        return (theta.detach().double().numpy() * self.factor)[self.groups]

    def reduce(self, vector: np.ndarray) -> np.ndarray:
        return np.bincount(self.groups, weights=vector, minlength=self.d) * self.factor

    def reduce_named(self, tensors: dict[str, torch.Tensor], entries: list[tuple[str, Any]]) -> torch.Tensor:
        """Pᵀ·g, with g read from dense gradients by name."""
        flat = [tensors[name].detach().double().numpy()[index].ravel() for name, index in entries]
        vector = np.concatenate(flat)
        assert vector.size == self.groups.size, "the test's entries are not D numbers"
        return torch.from_numpy(self.reduce(vector))

    def expand_named(
        self, theta: torch.Tensor, shapes: dict[str, tuple[int, ...]], entries: list[tuple[str, Any]]
    ) -> dict[str, torch.Tensor]:
        """P·theta by parameter name, zero outside the entries."""
        vector = self.expand(theta)
        out = {name: np.zeros(shapes[name]) for name, _ in entries}
        at = 0
        for name, index in entries:
            block = out[name][index]
            out[name][index] = vector[at : at + block.size].reshape(block.shape)
            at += block.size
        assert at == vector.size, "the test's entries are not D numbers"
        return {name: torch.from_numpy(value) for name, value in out.items()}


@pytest.fixture(scope="session")
def reference() -> type[DenseReference]:
    """The independent reference implementation, as a class."""
    return DenseReference


@pytest.fixture(scope="session")
def reference_groups() -> Callable[[int, int, int], np.ndarray]:
    """All groups of a partition, computed independently of gpart."""
    return _reference_groups


@pytest.fixture(scope="session")
def same_bits() -> Callable[[torch.Tensor, torch.Tensor], bool]:
    """Whether two tensors agree in dtype, shape and every bit (-0.0 is not 0.0, NaN is itself)."""

    def same(a: torch.Tensor, b: torch.Tensor) -> bool:
        if a.dtype != b.dtype or a.shape != b.shape:
            return False
        raw = [x.detach().reshape(-1).contiguous().view(torch.uint8) for x in (a, b)]
        return torch.equal(*raw)

    return same


@pytest.fixture
def evaluations(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shape of every weight that W0 + P·theta is computed for from now on, in order."""
    from gpart.materialize import weights as door
    from gpart.ops import dispatch

    calls: list[tuple[int, ...]] = []

    def counting(real: Callable[..., torch.Tensor], at: int) -> Callable[..., torch.Tensor]:
        def counted(*given: Any) -> torch.Tensor:
            calls.append(tuple(given[at].shape))
            return real(*given)

        return counted

    # New memory, as autograd asks for it, and the cache's.
    monkeypatch.setattr(dispatch, "expand", counting(dispatch.expand, 1))
    monkeypatch.setattr(door, "expand_into", counting(door.expand_into, 2))
    return calls


@pytest.fixture(scope="session")
def state_of(same_bits: Callable[[torch.Tensor, torch.Tensor], bool]) -> type:
    """A model's whole state, to compare with what it is later: ``state = state_of(model); state.assert_kept()``."""

    class State:
        def __init__(self, model: torch.nn.Module) -> None:
            self.model = model
            self.before = self._read()

        def _read(self) -> dict[str, Any]:
            modules = dict(self.model.named_modules(remove_duplicate=False))
            return {
                "classes": {path: type(module) for path, module in modules.items()},
                "keys": list(self.model.state_dict()),
                "parameters": [name for name, _ in self.model.named_parameters(remove_duplicate=False)],
                "flags": {name: value.requires_grad for name, value in self.model.named_parameters()},
                "training": {path: module.training for path, module in modules.items()},
                "identities": {name: id(value) for name, value in self.model.named_parameters(remove_duplicate=False)},
                "hooks": {
                    path: [list(getattr(module, kind)) for kind in _HOOKS if getattr(module, kind)]
                    for path, module in modules.items()
                },
                "bits": {name: value.clone() for name, value in self._tensors().items()},
            }

        def _tensors(self) -> dict[str, torch.Tensor]:
            named = [*self.model.named_parameters(), *self.model.named_buffers()]
            lazy = torch.nn.parameter.UninitializedTensorMixin
            return {name: value.detach() for name, value in named if not isinstance(value, lazy)}

        def assert_kept(self) -> None:
            now = self._read()
            for kind, value in self.before.items():
                if kind != "bits":
                    assert now[kind] == value, kind
            assert list(now["bits"]) == list(self.before["bits"])
            for name, value in self.before["bits"].items():
                assert same_bits(now["bits"][name], value), f"the bits of {name}"

    return State


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_always_called", "_forward_hooks_with_kwargs")


# Lightning: one small project, its network built in one of three places. Lightning is imported where it is used, so that
# the core's tests start quickly.


@cache
def _lit_project() -> dict[str, type]:
    from lightning.pytorch import LightningModule

    class Project(LightningModule):
        """BatchNorm, AdamW and a schedule by steps: all that a checkpoint has to bring back. It overrides no build hook."""

        def __init__(self, base: int = 0, width: int = 16, lr: float = 1e-2, extra: Any = None) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.lr, self.built, self.net = lr, 0, None

        def build(self) -> None:
            if self.net is not None:
                return
            self.built += 1
            torch.manual_seed(self.hparams["base"])
            width, nn = self.hparams["width"], torch.nn
            self.net = nn.Sequential(nn.Linear(8, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)

        def loss(self, batch: list[torch.Tensor]) -> torch.Tensor:
            return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])

        def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
            return self.loss(batch)

        def validation_step(self, batch: list[torch.Tensor], index: int) -> None:
            self.log("val/loss", self.loss(batch))

        def test_step(self, batch: list[torch.Tensor], index: int) -> None:
            self.log("test/loss", self.loss(batch))

        def predict_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
            return self(batch[0])

        def configure_optimizers(self) -> dict[str, Any]:
            optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    class InInit(Project):
        def __init__(self, base: int = 0, width: int = 16, lr: float = 1e-2, extra: Any = None) -> None:
            super().__init__(base, width, lr, extra)
            self.build()

    class InSetup(Project):
        def setup(self, stage: str) -> None:
            self.build()

    class InConfigureModel(Project):
        def configure_model(self) -> None:
            self.build()

    return {"init": InInit, "setup": InSetup, "configure_model": InConfigureModel}


@pytest.fixture(scope="session")
def lit_built_in() -> dict[str, type]:
    """The project's class by the place where its network is built."""
    return _lit_project()


@pytest.fixture(scope="session")
def lit_class() -> type:
    """The project whose network is built in ``__init__``."""
    return _lit_project()["init"]


@pytest.fixture(params=["init", "setup", "configure_model"])
def lit_any(request: pytest.FixtureRequest) -> type:
    """The project, once for each place where its network can be built."""
    return _lit_project()[request.param]


@pytest.fixture(scope="session")
def lit_loader() -> Callable[[], torch.utils.data.DataLoader]:
    """Four batches of four, in order."""
    data = torch.randn(16, 8, generator=torch.Generator().manual_seed(1)), torch.arange(16) % 2
    return lambda: torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data), batch_size=4)


@pytest.fixture(scope="session")
def lit_gpart() -> Callable[..., Any]:
    """The callback for that project: D = 128, d = 10, the last layer trained in full."""
    from gpart.callbacks import GPartCallback

    return lambda **more: GPartCallback(**{"d": 10, "target_modules": ["0"], "modules_to_save": ["3"], **more})


@pytest.fixture(scope="session")
def lit_trainer() -> Callable[..., Any]:
    """A quiet Trainer on the CPU for 3 steps, without logger and checkpoints unless asked for."""
    from lightning.pytorch import Trainer

    def make(*callbacks: Any, **more: Any) -> Trainer:
        quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
        limit = {} if "max_epochs" in more else {"max_steps": 3}
        return Trainer(**{"accelerator": "cpu", "callbacks": list(callbacks), **quiet, **limit, **more})

    return make


@pytest.fixture
def lit_fitted(
    tmp_path: Path, lit_class: type, lit_loader: Any, lit_gpart: Any, lit_trainer: Any
) -> Callable[..., Any]:
    """Fits for an epoch: the module, its trainer, and the path of its checkpoint."""
    from lightning.pytorch.callbacks import ModelCheckpoint

    def fit(module: Any = None, method: Any = None, *callbacks: Any, **more: Any) -> tuple[Any, Any, Path]:
        module = module or lit_class()
        keeper = ModelCheckpoint(tmp_path / "fitted", filename="{step}", enable_version_counter=False)
        settings = {"enable_checkpointing": True, "max_epochs": 1, **more}
        trainer = lit_trainer(method or lit_gpart(), *callbacks, keeper, **settings)
        trainer.fit(module, lit_loader())
        return module, trainer, Path(keeper.best_model_path)

    return fit


@pytest.fixture(scope="session")
def lit_frozen_kept(same_bits: Any) -> Callable[[torch.nn.Module, dict[str, torch.Tensor]], None]:
    """Asserts that the parameters that require no gradient have the bits they had, by their names before attach."""

    def check(network: torch.nn.Module, before: dict[str, torch.Tensor]) -> None:
        now = {name.replace("parametrizations.weight.original", "weight"): p for name, p in network.named_parameters()}
        frozen = [name for name in before if not now[name].requires_grad]
        assert frozen
        assert [name for name in frozen if not same_bits(now[name], before[name])] == []

    return check


@pytest.fixture(scope="session")
def torchrun() -> Callable[..., None]:
    """Runs a script in several processes that torchrun starts, one thread each; what they printed is the error's text."""

    def run(script: str, ranks: int, *words: str, timeout: float = 200) -> None:
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc_per_node={ranks}",
            script,
            *words,
        ]
        # Nor the seed that an earlier test has left for Lightning's ranks.
        own = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "PL_"))}
        path = os.pathsep.join(filter(None, [str(_HELPERS), os.environ.get("PYTHONPATH")]))
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              env={**own, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}, start_new_session=True) as process:  # fmt: skip
            try:
                printed, _ = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGTERM)  # torchrun ends its children, who have sessions of their own
                raise
        if process.returncode:
            raise AssertionError(printed[-4000:])

    return run


# Language understanding: GLUE in the hub's layout and an encoder, both tiny. Hugging Face is imported where it is used.

_WORDS = [
    *("the", "a", "film", "story", "joy", "mess", "heart", "soul", "is", "was"),
    *("very", "not", "good", "bad", "dull", "fine", "bright", "slow", "with", "and"),
]
_GLUE = {
    "cola": (("sentence",), ["unacceptable", "acceptable"]),
    "sst2": (("sentence",), ["negative", "positive"]),
    "mrpc": (("sentence1", "sentence2"), ["not_equivalent", "equivalent"]),
    "stsb": (("sentence1", "sentence2"), []),
    "qnli": (("question", "sentence"), ["entailment", "not_entailment"]),
    "rte": (("sentence1", "sentence2"), ["entailment", "not_entailment"]),
    "wnli": (("sentence1", "sentence2"), ["not_entailment", "entailment"]),
    "qqp": (("question1", "question2"), ["not_duplicate", "duplicate"]),
    "mnli": (("premise", "hypothesis"), ["entailment", "neutral", "contradiction"]),
}
_GLUE_ROWS = {"train": 80, "validation": 24, "test": 12}


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random RoBERTa of two layers with a word tokenizer, as a Hugging Face folder; its head is not in it."""
    from transformers import BertTokenizer, RobertaConfig, RobertaModel

    folder = tmp_path_factory.mktemp("encoder")
    vocabulary = folder / "words.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_WORDS]) + "\n")
    BertTokenizer(str(vocabulary)).save_pretrained(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    special = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "type_vocab_size": 2}
    torch.manual_seed(0)
    config = RobertaConfig(vocab_size=len(_WORDS) + 5, max_position_embeddings=64, **sizes, **special)
    RobertaModel(config).save_pretrained(folder)
    return folder


class TinyCausal:
    """Makes random causal language models of two layers with a word tokenizer, as Hugging Face folders."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(self, kind: str, dtype: torch.dtype = torch.float32) -> Path:
        folder = self.root / f"{kind}-{dtype}".replace(".", "-")
        if not folder.exists():
            self._tokenizer().save_pretrained(folder)
            self._model(kind).to(dtype).save_pretrained(folder)
        return folder

    def with_tokenizer(self, folder: Path) -> Path:
        """Puts a Llama of that tokenizer's size beside it."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model("llama", len(tokenizer), tokenizer).save_pretrained(folder)
        return folder

    def gguf(self, path: Path) -> Path:
        """The Llama as a GGUF file in eight bits a weight (Q8_0, blocks of 32), as llama.cpp's converter lays it out."""
        import gguf
        from transformers import AutoModelForCausalLM

        folder = self("llama")
        network, words = AutoModelForCausalLM.from_pretrained(folder), self._tokenizer().get_vocab()
        config, writer = network.config, gguf.GGUFWriter(path, "llama")
        heads, groups = config.num_attention_heads, config.num_key_value_heads
        writer.add_block_count(config.num_hidden_layers)
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(heads)
        writer.add_head_count_kv(groups)
        writer.add_rope_dimension_count(config.hidden_size // heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_vocab_size(config.vocab_size)
        writer.add_tokenizer_model("gpt2")
        tokens = sorted(words, key=words.__getitem__)
        writer.add_token_list(tokens + [f"<{at}>" for at in range(len(tokens), config.vocab_size)])
        writer.add_token_merges(["o n"])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        layer = {
            "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
            "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
            "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
        }  # fmt: skip
        names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
        for number in range(config.num_hidden_layers):
            names |= {f"model.layers.{number}.{ours}": f"blk.{number}.{theirs}" for ours, theirs in layer.items()}
        kind = gguf.GGMLQuantizationType.Q8_0
        for name, value in network.state_dict().items():
            ours = name.removesuffix(".weight")
            data = value.numpy()
            if ours.endswith(("q_proj", "k_proj")):  # llama.cpp keeps the rotary halves interleaved
                count = heads if ours.endswith("q_proj") else groups
                data = data.reshape(count, 2, -1, data.shape[1]).swapaxes(1, 2).reshape(data.shape)
            if data.ndim == 1:
                writer.add_tensor(f"{names[ours]}.weight", data)
            else:
                packed = gguf.quants.quantize(np.ascontiguousarray(data), kind)
                writer.add_tensor(f"{names[ours]}.weight", packed, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        numbers = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
        words = ["<pad>", "<s>", "</s>", "<unk>", *numbers, *_WORDS, *"0123456789", "####", "Question:", "Answer:"]
        vocabulary = {word: at for at, word in enumerate(dict.fromkeys(words))}
        inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        return PreTrainedTokenizerFast(tokenizer_object=inner, **special)

    def _model(self, kind: str, size: int = 64, tokenizer: Any = None) -> Any:
        from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        if tokenizer is not None:
            special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        if kind == "gpt2":
            config = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, n_positions=256, **special)
            return GPT2LMHeadModel(config)
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
        config = LlamaConfig(vocab_size=size, intermediate_size=64, max_position_embeddings=256, **sizes, **special)
        return LlamaForCausalLM(config)


@pytest.fixture(scope="session")
def tiny_causal(tmp_path_factory: pytest.TempPathFactory) -> TinyCausal:
    """``tiny_causal("llama")`` and ``tiny_causal("gpt2")`` are folders with a model and its tokenizer."""
    return TinyCausal(tmp_path_factory.mktemp("causal"))


@pytest.fixture(scope="session")
def glue_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All nine tasks as ``nyu-mll/glue`` lies on the hub: a README with the configurations, one parquet file a split.

    The ids are unlike in every split and are not the rows' places; the test sets' labels are -1.
    """
    from datasets import ClassLabel, Dataset, Features, Value

    folder = tmp_path_factory.mktemp("glue")
    lines, rng = ["---", "configs:"], np.random.default_rng(0)

    def text() -> str:
        return " ".join(rng.choice(_WORDS, size=rng.integers(3, 12)))

    for number, (task, (columns, names)) in enumerate(_GLUE.items()):
        label = ClassLabel(names=names) if names else Value("float32")
        features = Features({**{name: Value("string") for name in columns}, "label": label, "idx": Value("int32")})
        lines += [f"- config_name: {task}", "  data_files:"]
        first = 1000 * number
        for split, size in _GLUE_ROWS.items():
            for name in [f"{split}_matched", f"{split}_mismatched"] if task == "mnli" and split != "train" else [split]:
                ids = [first + 3 * place for place in range(size)]
                first = ids[-1] + 3
                whole = [place % len(names) if names else round(place * 5.0 / size, 2) for place in range(size)]
                labels = [-1 if names else -1.0] * size if split == "test" else whole
                data = {**{column: [text() for _ in ids] for column in columns}, "label": labels, "idx": ids}
                (folder / task).mkdir(exist_ok=True)
                Dataset.from_dict(data, features).to_parquet(folder / task / f"{name}-00000-of-00001.parquet")
                lines += [f"  - split: {name}", f"    path: {task}/{name}-*.parquet"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
    return folder


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of ``datasets`` that nothing is in yet."""
    import datasets

    cache = tmp_path / "datasets-cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    return cache


# Vision: image data sets in their layouts on disk and a processor, all tiny.


def _beside(name: str) -> Any:
    """A module of the helpers; by path, as the tests are imported."""
    import importlib.util

    spec = importlib.util.spec_from_file_location(name, _HELPERS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def image_folders() -> Any:
    """The module that writes fake pictures in each data set's layout."""
    return _beside("image_folders")


@pytest.fixture(scope="session")
def tiny_processor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an image processor only: 16 x 16 of a picture whose shorter side is 20."""
    from transformers import BitImageProcessor

    folder = tmp_path_factory.mktemp("processor")
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.25, 0.5]
    BitImageProcessor(
        size={"shortest_edge": 20}, crop_size={"height": 16, "width": 16}, image_mean=mean, image_std=std
    ).save_pretrained(folder)
    return folder


# Mathematics: questions with answers in their layouts on disk and a decoder's tokenizer, all tiny.


@pytest.fixture(scope="session")
def math_folders() -> Any:
    """The module that writes fake questions and tokenizers."""
    return _beside("math_folders")
