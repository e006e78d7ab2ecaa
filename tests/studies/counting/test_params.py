"""``gpart params``: the paper's counts, the shipped architectures, and where an architecture comes from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from transformers import PretrainedConfig

from gpart.cli import main
from gpart.errors import GPartError, GPartFileError
from gpart.studies import architectures
from gpart.studies.counting import params
from gpart.studies.counting.params import Report, Settings, count_parameters

PACKAGE = architectures.SHIPPED.parent
TINY = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 50}


def counts(report: Report) -> dict[str, int]:
    return {row.method: row.count for row in report.rows}


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    folder.mkdir()
    values = {"model_type": "bert", "architectures": ["BertModel"], **TINY}
    (folder / "config.json").write_text(json.dumps(values))
    return folder


# The counts


def test_roberta_base_has_the_papers_counts() -> None:
    report = count_parameters("roberta-base", Settings())
    assert counts(report) == {
        "Full fine-tuning": 124_647_170,
        "Linear probe": 0,
        "BitFit": 102_144,
        "LoRA": 294_912,
        "VeRA": 43_008,
        "FourierFT": 24_000,
        "Uni-LoRA": 23_040,
        "GPart": 23_040,
    }
    assert (report.total, report.head, report.modules_to_save) == (124_647_170, 592_130, ["classifier"])
    assert (report.adapted, report.size, report.task) == (24, 14_155_776, "sequence-classification")
    assert {row.method: row.per_layer for row in report.rows} == {
        "Full fine-tuning": (590_592, 590_592),
        "Linear probe": (0, 0),
        "BitFit": (768, 768),
        "LoRA": (12_288, 12_288),
        "VeRA": (1_792, 1_792),
        "FourierFT": (1_000, 1_000),
        "Uni-LoRA": None,
        "GPart": None,
    }
    gpart = report.rows[-1]
    assert (gpart.bytes, gpart.percent) == (92_160, pytest.approx(100 * 23_040 / 124_647_170))


def test_roberta_large_has_the_papers_counts() -> None:
    report = count_parameters("roberta-large", Settings(vera_r=256))
    assert counts(report) == {
        "Full fine-tuning": 355_361_794,
        "Linear probe": 0,
        "BitFit": 271_360,
        "LoRA": 786_432,
        "VeRA": 61_440,
        "FourierFT": 48_000,
        "Uni-LoRA": 23_040,
        "GPart": 23_040,
    }
    assert (report.adapted, report.size) == (48, 50_331_648)


@pytest.mark.parametrize(
    ("size", "d", "backbone", "lora", "bitfit", "adapted"),
    [
        ("base", 72_000, 85_798_656, 294_912, 102_912, 14_155_776),
        ("large", 144_000, 303_301_632, 786_432, 272_384, 50_331_648),
    ],
)
def test_vit(size: str, d: int, backbone: int, lora: int, bitfit: int, adapted: int) -> None:
    report = count_parameters(f"google/vit-{size}-patch16-224-in21k", Settings(d=d, num_labels=37))
    width = 768 if size == "base" else 1024
    assert report.head == 37 * (width + 1)
    assert report.total == backbone + report.head
    assert report.size == adapted
    found = counts(report)
    assert (found["LoRA"], found["BitFit"], found["Uni-LoRA"], found["GPart"]) == (lora, bitfit, d, d)
    assert found["Full fine-tuning"] == report.total


def test_a_model_with_grouped_keys_has_a_range_per_layer() -> None:
    report = count_parameters("Qwen/Qwen2.5-0.5B", Settings(d=131_072))
    rows = {row.method: row for row in report.rows}
    assert (report.adapted, report.head, report.modules_to_save) == (96, 0, [])
    # q and o are 896 x 896, k and v 128 x 896; q, k and v have biases.
    assert rows["LoRA"].per_layer == (8 * (896 + 128), 8 * (896 + 896))
    assert rows["LoRA"].count == 24 * 2 * 8 * (896 + 128 + 896 + 896)
    assert rows["BitFit"].count == 24 * (896 + 128 + 128)
    assert report.size == 24 * 2 * (896 * 896 + 128 * 896)


@pytest.mark.timeout(40)
def test_fourierft_needs_no_permutation_of_a_large_models_weights() -> None:
    # 4 s; with the permutations that PEFT makes on the CPU a minute.
    report = count_parameters("google/gemma-7b", Settings(d=524_288))
    assert counts(report)["FourierFT"] == 112_000
    assert report.size == 28 * 4 * 3072 * 4096


def test_the_target_modules_and_the_head_can_be_chosen(tiny: Path) -> None:
    settings = Settings(
        d=5, target_modules=["key"], modules_to_save=["classifier", "pooler"], lora_r=2, fourierft_n=4, num_labels=3
    )
    report = count_parameters(str(tiny), settings)
    assert report.head == (8 * 3 + 3) + (8 * 8 + 8)
    assert (report.adapted, report.size) == (2, 128)
    rows = {row.method: row for row in report.rows}
    assert rows["LoRA"].count == 2 * 2 * 16
    assert rows["Linear probe"].count == 0
    # By default the pooler belongs to the head, and its bias with it.
    assert count_parameters(str(tiny), Settings(d=5, target_modules=["key"], fourierft_n=4)).modules_to_save == [
        "bert.pooler",
        "classifier",
    ]
    without = Settings(d=5, target_modules=["key"], modules_to_save=["classifier"], fourierft_n=4)
    assert counts(count_parameters(str(tiny), without))["BitFit"] - rows["BitFit"].count == 8


def test_all_linear_adapts_the_same_layers_with_every_method(tiny: Path) -> None:
    report = count_parameters(str(tiny), Settings(d=5, target_modules="all-linear", lora_r=1, fourierft_n=4))
    layers = 2 * 6  # the head, pooler and classifier, is left out
    assert report.adapted == layers
    assert counts(report)["LoRA"] == 2 * (4 * 16 + 2 * 24)


def test_the_task_can_be_chosen() -> None:
    report = count_parameters("Qwen/Qwen2.5-0.5B", Settings(task="sequence-classification", num_labels=4))
    assert (report.modules_to_save, report.head) == (["score"], 4 * 896)
    assert report.target_modules == ["q_proj", "v_proj"]


# The shipped architectures

TOTALS = {
    "FacebookAI/roberta-base": 124_647_170,
    "FacebookAI/roberta-large": 355_361_794,
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-3B": 3_085_938_688,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "google/gemma-7b": 8_537_680_896,
    "google/vit-base-patch16-224": 85_798_656 + 769 * 2,
    "google/vit-base-patch16-224-in21k": 85_798_656 + 769 * 2,
    "google/vit-large-patch16-224": 303_301_632 + 1025 * 2,
    "google/vit-large-patch16-224-in21k": 303_301_632 + 1025 * 2,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "openai-community/gpt2": 124_439_808,
    "sentence-transformers/all-MiniLM-L6-v2": 22_713_216 + 385 * 2,
}


@pytest.mark.parametrize("name", TOTALS)
def test_a_shipped_architecture_has_its_models_total(name: str) -> None:
    config = architectures.config(name)
    config.num_labels = 2
    model = architectures.build(config, architectures.find_task(config))
    assert sum(value.numel() for value in model.parameters()) == TOTALS[name]
    assert {value.device.type for value in model.parameters()} == {"meta"}


def test_every_shipped_file_is_known_has_its_source_and_is_packaged() -> None:
    files = architectures.shipped()
    assert sorted(files) == sorted(TOTALS)
    globs = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"][
        "gpart"
    ]
    packaged = {path for pattern in globs for path in PACKAGE.glob(pattern)}
    for name, path in files.items():
        assert path in packaged
        assert json.loads(path.read_text())["_source"].startswith(f"https://huggingface.co/{name}: ")
    assert not hasattr(architectures.config("google/gemma-7b"), "_source")


# Where an architecture comes from


def test_a_local_folder_goes_before_a_shipped_name(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.rename(tmp_path / "roberta-base")
    assert architectures.config("roberta-base").hidden_size == 768
    monkeypatch.chdir(tmp_path)
    assert architectures.config("roberta-base").hidden_size == 8
    assert architectures.config("roberta-base/config.json").hidden_size == 8


def test_a_hub_that_cannot_be_reached_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: object, **__: object) -> None:
        raise AssertionError("asking costs half a minute of retries")

    monkeypatch.setattr(architectures, "is_offline_mode", lambda: False)
    monkeypatch.setattr(architectures, "getproxies", dict)
    monkeypatch.setattr(architectures.constants, "ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr(architectures.AutoConfig, "from_pretrained", asked)
    assert architectures.config("roberta-base").hidden_size == 768


class _Hub(BaseHTTPRequestHandler):
    """A hub with one model, a gated one, and nothing else."""

    def do_HEAD(self) -> None:
        body = json.dumps({"model_type": "roberta", "architectures": ["RobertaForMaskedLM"], **TINY}).encode()
        if self.path.startswith("/FacebookAI/roberta-base/resolve/main/config.json"):
            self.send_response(200)
            self.send_header("ETag", '"1"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("Content-Length", str(len(body)))
        elif self.path.startswith("/google/gemma-7b/"):
            self.send_response(403)
            self.send_header("X-Error-Code", "GatedRepo")
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_GET = do_HEAD

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_hub_goes_before_a_shipped_file(hub: str, tmp_path: Path) -> None:
    code = """
from gpart.studies import architectures
print(architectures.config("roberta-base").hidden_size, architectures.config("google/gemma-7b").hidden_size)
try:
    architectures.config("no/such")
except FileNotFoundError as error:
    print(error)
"""
    own = {"HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
    without_proxies = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**without_proxies, **own}, capture_output=True, text=True, check=True
    )
    first, *error = done.stdout.splitlines()
    assert first == "8 3072"
    assert "none on the hub by this name" in error[0]
    assert "shipped are roberta-base" in error[0]


# The command


def test_the_command_prints_the_table(capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder) -> None:
    assert main(["params", "roberta-base", "--lora-r", "4"]) == 0
    assert not recwarn.list
    printed = capsys.readouterr()
    lines = [" ".join(line.split()) for line in printed.out.splitlines()]
    assert "parameters 124,647,170" in lines
    assert "D 14,155,776" in lines
    assert "LoRA (r = 4) 6,144 147,456 0.1183 % 589.8 kB" in lines
    assert "GPart (d = 23040) global, shared 23,040 0.0185 % 92.2 kB" in lines
    assert printed.err == ""


def test_the_command_prints_json(capsys: pytest.CaptureFixture[str], tiny: Path) -> None:
    options = ["--d", "7", "--vera-r", "3", "--fourierft-n", "2", "--target-modules", "all-linear", "--json"]
    assert main(["params", str(tiny), *options]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["target_modules"] == "all-linear"
    assert printed["rows"][-1] == {
        "method": "GPart",
        "setting": "d = 7",
        "per_layer": None,
        "count": 7,
        "percent": pytest.approx(700 / printed["total"]),
        "bytes": 28,
    }
    assert [row["setting"] for row in printed["rows"]][3:6] == ["r = 8", "r = 3", "n = 2"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["no/such"], "no architecture for 'no/such'"),
        (["no/such"], "meta-llama/Llama-3.1-8B"),
        (["no such; model"], "no architecture for 'no such; model'"),
        (["a/b/c"], "no architecture for 'a/b/c'"),
        ([""], "no architecture for ''"),
        (["TINY/.."], "no config.json in the folder"),
        (["TINY", "--d", "257"], "d=257 is more than the 256 weights"),
        (["TINY", "--d", "0"], "d must be a whole number, 1 or more, got 0"),
        (["TINY", "--lora-r", "0"], "lora_r must be a whole number, 1 or more, got 0"),
        (["TINY", "--vera-r", "-1"], "vera_r must be a whole number, 1 or more, got -1"),
        (["TINY", "--fourierft-n", "0"], "fourierft_n must be a whole number, 1 or more, got 0"),
        (["TINY", "--d", "5", "--fourierft-n", "65"], "FourierFT (n = 65) cannot be applied to"),
        (["TINY", "--num-labels", "0"], "num_labels must be a whole number, 1 or more, got 0"),
        (["TINY", "--target-modules", "q_proj"], "'q_proj' matches no module"),
        (["TINY", "--modules-to-save", "score"], "'score' matches no module"),
        (["TINY", "--task", "image-classification"], "a bert model cannot be built for image-classification"),
        (["TINY", "--task", "poetry"], "invalid choice: 'poetry'"),
        (["TINY", "--lora-r", "many"], "invalid int value: 'many'"),
        (["TINY", "--nosuch"], "unrecognized arguments: --nosuch"),
        (["TINY", "--batch-size", "1", "--json"], "--batch-size counts with --memory only"),
        (["TINY", "--dtype", "bfloat16", "--gradient-checkpointing"], "--dtype, --gradient-checkpointing counts with"),
        ([], "the following arguments are required: MODEL"),
    ],
)
def test_mistakes_are_one_line(tiny: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    assert main(["params", *[word.replace("TINY", str(tiny)) for word in words]]) == 2
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if line]
    assert len(lines) == 1, printed.err
    assert lines[0].startswith("gpart: error: ")
    assert said in lines[0]
    assert printed.out == ""


@pytest.mark.parametrize(
    ("name", "changes", "error", "said"),
    [
        ("no/such", {}, GPartFileError, "no architecture for 'no/such'"),
        ("TINY/..", {}, GPartFileError, "no config.json in the folder"),
        ("no such; model", {}, GPartFileError, "no architecture for 'no such; model'"),
        ("TINY", {"d": 0}, GPartError, "d must be a whole number, 1 or more, got 0"),
        ("TINY", {"fourierft_n": 65}, GPartError, r"FourierFT \(n = 65\) cannot be applied to .*: PEFT refuses"),
        ("TINY", {"task": "poetry"}, GPartError, "task must be one of .*, got 'poetry'"),
        ("TINY", {"task": "image-classification"}, GPartError, "a bert model cannot be built for image-classification"),
    ],
)
def test_mistakes_are_our_errors(
    tiny: Path, name: str, changes: dict[str, object], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said) as caught:
        count_parameters(name.replace("TINY", str(tiny)), Settings(**{"d": 5, "fourierft_n": 3, **changes}))
    assert type(caught.value) is error


def test_an_unusable_config_is_our_error(tiny: Path) -> None:
    (tiny / "config.json").write_text('{"model_type": "nosuch"}')
    with pytest.raises(GPartError, match="is no config of a model that Transformers knows"):
        architectures.config(str(tiny))
    with pytest.raises(GPartError, match="is for none of sequence-classification, causal-lm, image-classification"):
        architectures.find_task(PretrainedConfig())


@pytest.mark.parametrize("error", [TypeError("a fault"), ValueError("a fault")])
def test_a_fault_of_our_own_keeps_its_type(tiny: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(model: object, config: object) -> None:
        raise error

    monkeypatch.setattr(params, "attach", fail)
    with pytest.raises(type(error), match=r"^a fault$"):
        count_parameters(str(tiny), Settings(d=5, fourierft_n=3))


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        "\u00ff",
        '{"model_type": "nosuch"}',
        '{"model_type": ["bert"]}',
        '{"model_type": "bert", "hidden_size": "wide"}',
        '{"model_type": "bert", "hidden_size": 10, "num_attention_heads": 3}',
        '{"model_type": "bert", "hidden_size": -4, "num_attention_heads": 2}',
        '{"model_type": "bert", "num_attention_heads": 0}',
    ],
)
def test_an_unusable_config_is_one_line(tiny: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    (tiny / "config.json").write_text(text, encoding="latin-1")
    assert main(["params", str(tiny)]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert len(lines) == 1
    assert lines[0].startswith("gpart: error: ")
