"""A study's file: what it becomes, and what is refused before anything runs."""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path

import pytest
import yaml

import gpart
from gpart.errors import GPartError, GPartFileError
from gpart.studies.experiments import schema
from gpart.studies.experiments.plan import plan, safe_name, shard_of
from gpart.studies.experiments.schema import read_study

TEXT = """
folder: out
every:
  config: base
  set: {data.path: /data/glue, trainer.max_epochs: 2}
axes:
  task:
    RTE: {config: glue/rte, metric: accuracy, set: {trainer.max_epochs: 3}}
    CoLA: {config: [glue/cola, more.yaml], metric: test/matthews}
  method:
    GPart: {set: {method.target_modules: [query, value], method.bias: null, method.isometric: true}}
    LoRA: {config: methods/lora, tune: {model.lr: [5.0e-4, 2.0e-3], model.wd: [0, 1]}}
    probe:
columns: task
seeds: [3, 1]
paper: {GPart: {RTE: 78.3, Avg: 83}}
"""


def write(at: Path, text: str = TEXT, **changes: object) -> Path:
    """The study above with some keys replaced; None takes a key away."""
    data = yaml.safe_load(text) | changes
    path = at / "small.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in data.items() if value is not None}, sort_keys=False))
    return path


def test_words_of_every_run_in_order(tmp_path: Path) -> None:
    cells = plan(read_study(write(tmp_path)))
    assert [cell.name for cell in cells] == [
        f"{task} / {method}" for task in ("RTE", "CoLA") for method in ("GPart", "LoRA", "probe")
    ]
    assert cells[0].candidates[0].runs[0].words == (
        "fit",
        "--config=base",
        "--config=glue/rte",
        "--data.path=/data/glue",
        "--trainer.max_epochs=2",
        "--trainer.max_epochs=3",
        '--method.target_modules=["query", "value"]',
        "--method.bias=null",
        "--method.isometric=true",
        "--seed_everything=3",
        "--trainer.default_root_dir=out/RTE/GPart/seed-3",
        "--trainer.callbacks+=MetricsWriter",
        "--trainer.callbacks.path=out/RTE/GPart/seed-3/metrics.json",
        "--test_best=true",
        "--trainer.enable_progress_bar=false",
        "--own_folder=true",
    )
    lora = cells[4]
    assert lora.labels == {"task": "CoLA", "method": "LoRA"}
    assert [candidate.tuned for candidate in lora.candidates] == [
        {"model.lr": lr, "model.wd": wd} for lr in (5.0e-4, 2.0e-3) for wd in (0, 1)
    ]
    run = lora.candidates[2].runs[1]
    assert run.words[1:4] == ("--config=base", "--config=glue/cola", "--config=more.yaml")
    assert run.words[4:9] == (
        "--config=methods/lora",
        "--data.path=/data/glue",
        "--trainer.max_epochs=2",
        "--model.lr=0.002",
        "--model.wd=0",
    )
    assert run.seed == 1
    assert run.metric == "matthews"
    assert run.folder == Path("out/CoLA/LoRA/model.lr=0.002,-model.wd=0/seed-1")
    assert len({run.folder for cell in cells for one in cell.candidates for run in one.runs}) == 2 * 2 * (1 + 4 + 1)


def test_seeded_settings_take_the_runs_seed_after_all_that_is_set_and_tuned(tmp_path: Path) -> None:
    data = yaml.safe_load(TEXT)
    before = [run.words for cell in plan(read_study(write(tmp_path))) for one in cell.candidates for run in one.runs]
    data["every"]["seeded"] = ["data.seed"]
    data["axes"]["method"]["GPart"]["seeded"] = ["method.seed", "data.seed"]
    data["axes"]["method"]["LoRA"]["seeded"] = ["method.settings.proj_seed"]
    runs = [run for cell in plan(read_study(write(tmp_path, **data))) for one in cell.candidates for run in one.runs]
    own = {
        "GPart": ["data.seed", "method.seed"],
        "LoRA": ["data.seed", "method.settings.proj_seed"],
        "probe": ["data.seed"],
    }
    assert len(before) == len(runs)
    for words, run in zip(before, runs, strict=True):
        at = words.index(f"--seed_everything={run.seed}")
        added = tuple(f"--{key}={run.seed}" for key in own[run.labels["method"]])
        assert run.words == (*words[:at], *added, *words[at:])  # without the key the words are as ever
    assert {run.seed for run in runs} == {3, 1}


@pytest.mark.parametrize(
    "change", [{"set": {"method.seed": 4}}, {"tune": {"method.seed": [4, 5]}}, {"set": {"data.path": "/other"}}]
)
def test_a_seeded_setting_with_another_value_is_refused(change: dict[str, object], tmp_path: Path) -> None:
    """One of the two would be silently overruled."""
    axes = yaml.safe_load(TEXT)["axes"]
    axes["method"]["GPart"] = {"seeded": ["method.seed"], **change}
    seeded = "data.path" if "data.path" in str(change) else "method.seed"
    every = {"seeded": ["data.path"]} if seeded == "data.path" else {}
    with pytest.raises(GPartError, match=rf"cell RTE / GPart: \['{seeded}'\] would take the run's seed, and is set or"):
        plan(read_study(write(tmp_path, axes=axes, every=every)))


@pytest.mark.parametrize(
    ("seeded", "said"),
    [
        ("data.seed", "every.seeded: 'data.seed' is no list of settings that take the run's seed"),
        ({"data.seed": 1}, "every.seeded: {'data.seed': 1} is no list"),
        ([["data.seed"]], r"every.seeded: \[\['data.seed'\]\] is no list"),
        (["data seed"], "every.seeded: 'data seed' is no dotted setting"),
        (["seed_everything"], "every.seeded: seed_everything=None, but the study sets seed_everything itself"),
    ],
)
def test_what_is_wrong_with_seeded_is_named(seeded: object, said: str, tmp_path: Path) -> None:
    with pytest.raises(GPartError, match=said):
        read_study(write(tmp_path, every={"seeded": seeded}))


def test_defaults(tmp_path: Path) -> None:
    study = read_study(write(tmp_path, folder=None, every=None, seeds=None, paper=None))
    assert (study.folder, study.seeds, study.statistic, study.scale) == (Path("runs/small"), (0,), "median", 100)
    assert (study.config, dict(study.settings), study.paper) == ((), {}, {})


def test_whole_numbers_are_labels(tmp_path: Path) -> None:
    axes = {"d": {1000: {"set": {"method.d": 1000}}}, "task": {"RTE": {"metric": "accuracy"}}}
    study = read_study(write(tmp_path, axes=axes, paper={1000: {"RTE": 1.5}}))
    assert study.rows == ["1000"]
    assert study.paper == {"1000": {"RTE": 1.5}}
    assert plan(study)[0].candidates[0].runs[0].folder == Path("out/1000/RTE/seed-3")


def test_rows_are_combinations_of_the_other_axes(tmp_path: Path) -> None:
    axes = {"d": {"10": None, "20": None}, "task": {"RTE": {"metric": "accuracy"}}, "method": {"A": None, "B": None}}
    study = read_study(write(tmp_path, axes=axes, paper=None))
    assert study.rows == ["10 / A", "10 / B", "20 / A", "20 / B"]
    only = read_study(write(tmp_path, axes={"task": axes["task"]}, paper={"small": {"RTE": 1}}))
    assert only.rows == ["small"]


def test_shards_deal_whole_cells_out(tmp_path: Path) -> None:
    cells = plan(read_study(write(tmp_path)))
    parts = [shard_of(cells, part, 4) for part in (1, 2, 3, 4)]
    assert parts[1] == [cells[1], cells[5]]
    assert sorted(cell.name for part in parts for cell in part) == sorted(cell.name for cell in cells)
    assert shard_of(cells, 9, 9) == []
    for part, count in ((0, 4), (5, 4), (1, 0)):
        with pytest.raises(GPartError, match=f"shard {part}/{count}"):
            shard_of(cells, part, count)


def test_names_are_safe_and_stay_distinct() -> None:
    assert safe_name("../x y/z") == "x-y-z"
    long = "a" * 300
    assert safe_name(long + "1") != safe_name(long + "2")
    assert len(safe_name(long)) == 120
    assert safe_name("..") == ""


def test_names_are_cut_by_bytes() -> None:
    """File systems count bytes; a name that was short enough stays, as finished runs stand below it."""
    longest = "a" * 120
    assert safe_name(longest) == longest
    assert safe_name(longest + "b") == f"{'a' * 111}-{hashlib.sha256((longest + 'b').encode()).hexdigest()[:8]}"
    assert safe_name("\u6587" * 85) == "\u6587" * 85  # 255 bytes
    for letter in ("\u00e9", "\u6587", "\U00020000"):
        for count in (64, 86, 120, 300):
            name = safe_name(letter * count)
            assert len(name.encode()) <= 255
            assert (name == letter * count) == (count <= 120 and len((letter * count).encode()) <= 255)
            assert name != safe_name(letter * count + "x")


TASKS = {"RTE": {"metric": "accuracy"}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"axis": {}}, r"key 'axis' is not known; did you mean 'axes'\? there are folder, every"),
        ({"axes": None}, "axes: there are none"),
        ({"axes": {"task": {}}}, "axes.task: it has no values"),
        ({"axes": {"task": {"RTE": {"metric": "a", "confg": "x"}}}}, "axes.task.RTE: key 'confg'.*'config'"),
        ({"axes": {"task": {"RTE": {}}}}, "axes.task.RTE: metric=None"),
        ({"axes": {"task": TASKS, "method": {"A": {"metric": "f1"}}}}, "axes.method.A: metric='f1' belongs on"),
        ({"axes": {"task": TASKS, "method": {"A": {"mode": "min"}}}}, "axes.method.A: mode='min' belongs on"),
        (
            {"axes": {"task": {"RTE": {"metric": "a", "mode": "low"}}}},
            r"axes.task.RTE: mode='low' is none of \['max', 'min'\]",
        ),
        ({"axes": {"task": TASKS, "seed": {"A": None}}}, "axes.seed: an axis of this name"),
        ({"axes": {"task": TASKS, "on": {True: None}}}, r"axes.on: True \(bool\) is no label"),
        ({"axes": {"task": {"Avg": {"metric": "a"}}}}, "'Avg' is the table's own column"),
        ({"axes": [1]}, r"axes: \[1\] is no mapping"),
        ({"axes": {"task": TASKS, "1": {"A": None}, 1: {"A": None}}}, "axes: 1 and '1' are one name"),
        (
            {"axes": {"task": TASKS, "a": {"A": None, "A / B": None}, "b": {"B / C": None, "C": None}}},
            "the row 'A / B / C' is there twice, of {'a': 'A', 'b': 'B / C'} and of {'a': 'A / B', 'b': 'C'}",
        ),
        ({"every": {"tune": {}}}, "every: key 'tune' is not known"),
        ({"every": {"config": {"a": 1}}}, "every.config: {'a': 1} is neither"),
        ({"every": {"set": {"--model.lr": 1}}}, "'--model.lr' is no dotted setting"),
        ({"every": {"set": {"seed_everything": 1}}}, "seed_everything=1, but the study sets.*use seeds:"),
        (
            {"every": {"set": {"trainer": {"enable_progress_bar": True, "max_epochs": 1}}}},
            "every.set: trainer.enable_progress_bar=True, but the study sets trainer.enable_progress_bar itself; leave it",
        ),
        (
            {"axes": {"task": {"RTE": {"metric": "a", "tune": {"trainer": [{}, {"default_root_dir": "x"}]}}}}},
            "axes.task.RTE.tune: trainer.default_root_dir='x', but the study",
        ),
        ({"every": {"set": {"model.lr": float("inf")}}}, r"model.lr: inf \(float\) has no form"),
        ({"columns": "tasks"}, r"columns='tasks' names no axis; the axes are \['task', 'method'\]"),
        ({"columns": None}, "columns=None names no axis"),
        ({"columns": ["task"]}, r"columns=\['task'\] names no axis"),
        ({"columns": {"task": 1}}, "columns={'task': 1} names no axis"),
        ({"statistic": "max"}, r"statistic='max' is none of \['median', 'mean'\]"),
        ({"scale": 0}, "scale=0"),
        ({"scale": "100"}, "scale: '100' is no number"),
        ({"seeds": [1, 1]}, r"seeds=\[1, 1\]"),
        ({"seeds": []}, r"seeds=\[\]"),
        ({"seeds": [True]}, r"seeds=\[True\]"),
        ({"seeds": [1.5]}, r"seeds=\[1.5\]"),
        ({"seeds": 3}, "seeds=3"),
        ({"folder": 3}, "folder=3 is no path"),
        ({"paper": {"Gpart": {"RTE": 1}}}, "paper: row 'Gpart'.*did you mean 'GPart'.*GPart, LoRA, probe"),
        ({"paper": {"GPart": {"rte": 1}}}, "paper.GPart: column 'rte'.*RTE, CoLA, Avg"),
        ({"paper": {"GPart": {"RTE": "78"}}}, "paper.GPart.RTE: '78' is no number"),
    ],
)
def test_mistakes_name_the_place_and_both_values(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    path = write(tmp_path, **changes)
    with pytest.raises(GPartError, match=said) as error:
        read_study(path)
    assert str(error.value).startswith(str(path))


@pytest.mark.parametrize(
    ("tune", "said"),
    [
        ({"model.lr": 0.1}, "axes.method.A.tune.model.lr: 0.1 is no list"),
        ({"model.lr": []}, r"axes.method.A.tune.model.lr: \[\] is no list"),
        ({"model.lr": [0.1, 0.1]}, "tune: 'model.lr=0.1' and 'model.lr=0.1' would share"),
    ],
)
def test_mistakes_in_tune(tmp_path: Path, tune: dict[str, object], said: str) -> None:
    with pytest.raises(GPartError, match=said):
        plan(read_study(write(tmp_path, axes={"task": TASKS, "method": {"A": {"tune": tune}}}, paper=None)))


@pytest.mark.parametrize("value", [0, 4, True, "2"])
def test_the_seeds_that_choose_are_some_of_the_seeds(tmp_path: Path, value: object) -> None:
    with pytest.raises(GPartError, match=rf"tune_seeds={value!r} is no whole number from 1 to the 3 seeds=\[0, 1, 2\]"):
        read_study(write(tmp_path, tune_seeds=value, seeds=[0, 1, 2]))


def test_the_baseline_is_a_row(tmp_path: Path) -> None:
    assert read_study(write(tmp_path, baseline="LoRA")).baseline == "LoRA"
    with pytest.raises(GPartError, match=r"baseline: row 'LoR' is not known; did you mean 'LoRA'\?"):
        read_study(write(tmp_path, baseline="LoR"))


def test_two_axes_tune_by_product_but_not_the_same_setting(tmp_path: Path) -> None:
    axes = {"task": {"RTE": {"metric": "a", "tune": {"x": [1, 2]}}}, "method": {"A": {"tune": {"y": [3, 4]}}}}
    cell = plan(read_study(write(tmp_path, axes=axes, paper=None)))[0]
    assert [one.text for one in cell.candidates] == ["x=1, y=3", "x=1, y=4", "x=2, y=3", "x=2, y=4"]
    axes["method"]["A"]["tune"] = {"x": [3]}
    with pytest.raises(GPartError, match=r"cell RTE / A: \['x'\] is tuned on two axes"):
        plan(read_study(write(tmp_path, axes=axes, paper=None)))


@pytest.mark.parametrize("pair", [("a b", "a/b"), ("A", "a"), ("1000", 1000)])
def test_labels_that_share_a_folder_are_refused(tmp_path: Path, pair: tuple[object, object]) -> None:
    axes = {"task": {label: {"metric": "accuracy"} for label in pair}}
    with pytest.raises(GPartError, match="would share the folder"):
        plan(read_study(write(tmp_path, axes=axes, paper=None)))


def test_a_label_of_nothing_safe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GPartError, match=r"axes.task: nothing of '\.\.'"):
        plan(read_study(write(tmp_path, axes={"task": {"..": {"metric": "a"}}}, paper=None)))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("axes: [", "is no YAML"),
        ("- 1", r"the study: \[1\] is no mapping"),
        ("columns: 2020-13-45", "is no YAML: month must be in 1..12"),
        ("columns: !!int many", "is no YAML: invalid literal for int"),
        ("axes: {task: {RTE: {metric: a}, RTE: {metric: b}}}\ncolumns: task", "key 'RTE' is there twice"),
        ("columns: t\naxes: {t: &x [*x]}", "axes.t: .* is no mapping"),
        ("columns: t\naxes: {t: {A: {metric: a, set: {x: 2020-01-01}}}}", r"set.x: .*\(date\) has no form"),
    ],
)
def test_what_yaml_would_let_through(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(GPartError, match=said):
        read_study(path)


def test_merge_keys_are_not_taken_for_repeated_ones(tmp_path: Path) -> None:
    path = tmp_path / "merge.yaml"
    path.write_text("columns: t\naxes: {t: {A: &a {metric: m, config: x}, B: {<<: *a, config: y}}}")
    values = read_study(path).axes[0].values
    assert [(value.metric, value.config) for value in values] == [("m", ("x",)), ("m", ("y",))]


def test_a_fault_of_our_own_is_not_taken_for_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(value: object) -> None:
        raise ValueError("a fault")

    monkeypatch.setattr(schema, "_seeds", fail)
    with pytest.raises(ValueError, match=r"^a fault$") as caught:
        read_study(write(tmp_path))
    assert not isinstance(caught.value, GPartError)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(GPartFileError, match=r"no study at nosuch\.yaml"):
        read_study("nosuch.yaml")
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"folder: \xe9")
    with pytest.raises(GPartError, match=r"latin\.yaml is no YAML"):
        read_study(path)


def test_studies_know_neither_the_command_nor_an_adapter() -> None:
    folder = Path(gpart.__file__).parent / "studies"
    for path in folder.rglob("*.py"):
        names = [
            node.module or "" for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)
        ]
        assert not [name for name in names if name.startswith("gpart.cli")], path
    for name in ("study", "schema", "plan", "outcome", "running", "results", "tables"):
        tree = ast.parse((folder / "experiments" / f"{name}.py").read_text())
        names = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        known = {found for found in names if found.startswith("gpart") and not found.startswith("gpart.studies.")}
        assert known <= {"gpart.serialization.atomic", "gpart.errors"}, name  # how a file is replaced as a whole
