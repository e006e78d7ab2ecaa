"""Reads and checks the file of a study.

Invariant: every mistake in the file is reported before anything runs, as a GPartError that names the place in the file,
the value there, and what is allowed.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from gpart.errors import GPartError, GPartFileError
from gpart.studies.experiments.study import (
    AVERAGE,
    MODES,
    OWN_SETTINGS,
    RUN_FIELDS,
    STATISTICS,
    Axis,
    AxisValue,
    Study,
    value_text,
)


def read_study(path: str | Path) -> Study:
    """Reads and checks a study's file.

    Args:
        path: a YAML file. ``gpart study --help`` shows its form.

    Raises:
        GPartFileError: if there is no such file.
        GPartError: if it is not YAML, or has a mistake.
    """
    path = Path(path)
    if not path.is_file():
        raise GPartFileError(f"no study at {path}")
    try:
        text = path.read_text(encoding="utf-8")
        repeated = _repeated_key(yaml.compose(text, Loader=yaml.SafeLoader), set())
        data = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # a ValueError: text that is not UTF-8, or a date such as 2020-13-45
        raise GPartError(f"{path} is no YAML: {error}") from error
    if repeated is not None:
        raise GPartError(f"{path}: the key {repeated!r} is there twice in one mapping, and the first would be lost")
    try:
        return _study(data, path.stem)
    except GPartError as error:
        raise GPartError(f"{path}: {error}") from error


def _study(data: Any, name: str) -> Study:
    keys = ("folder", "every", "axes", "columns", "seeds", "tune_seeds", "statistic", "scale", "baseline", "paper")
    file = _mapping(data, "the study", keys)
    every = _mapping(file.get("every"), "every", ("config", "set", "seeded"))
    columns = file.get("columns")
    named = _mapping(file.get("axes"), "axes")
    if not named:
        raise GPartError("axes: there are none; a study varies at least one thing, such as task: {RTE: ...}")
    if not isinstance(columns, (str, int)) or columns not in named:
        raise GPartError(f"columns={columns!r} names no axis; the axes are {list(named)}")
    axes = tuple(_axis(axis, values, axis == columns) for axis, values in named.items())
    for axis in named:
        if str(axis) != axis and str(axis) in named:
            raise GPartError(f"axes: {axis!r} and {str(axis)!r} are one name in the tables")
    statistic = file.get("statistic", "median")
    if statistic not in STATISTICS:
        raise GPartError(f"statistic={statistic!r} is none of {list(STATISTICS)}")
    scale = _number(file.get("scale", 100), "scale")
    if scale <= 0:
        raise GPartError(f"scale={scale!r}: scores are printed times this, so it is more than 0")
    seeds, tune_seeds = _seeds(file.get("seeds", [0])), file.get("tune_seeds", 1)
    if type(tune_seeds) is not int or not 1 <= tune_seeds <= len(seeds):
        raise GPartError(f"tune_seeds={tune_seeds!r} is no whole number from 1 to the {len(seeds)} seeds={list(seeds)}")
    folder = file.get("folder", f"runs/{name}")
    if not isinstance(folder, str) or not folder:
        raise GPartError(f"folder={folder!r} is no path")
    study = Study(
        name=name,
        folder=Path(folder),
        config=_configs(every.get("config"), "every.config"),
        settings=_settings(every.get("set"), "every.set"),
        seeded=_seeded(every.get("seeded"), "every.seeded"),
        axes=axes,
        columns=str(columns),
        seeds=seeds,
        tune_seeds=tune_seeds,
        statistic=statistic,
        scale=scale,
        baseline=None,
        paper={},
    )
    _distinct_rows(study)
    baseline = file.get("baseline")
    if baseline is not None:
        _known(str(baseline), study.rows, "baseline: row")
        study = replace(study, baseline=str(baseline))
    return replace(study, paper=_paper(study, _mapping(file.get("paper"), "paper")))


def _axis(name: Any, values: Any, is_column: bool) -> Axis:
    where = f"axes.{name}"
    if _label(name, "axes") in RUN_FIELDS:
        raise GPartError(f"{where}: an axis of this name would hide a column of table.csv ({', '.join(RUN_FIELDS)})")
    given = _mapping(values, where)
    if not given:
        raise GPartError(f"{where}: it has no values")
    result = []
    for label, value in given.items():
        place = f"{where}.{label}"
        asked = _mapping(value, place, ("config", "set", "tune", "seeded", "metric", "mode"))
        metric, mode = asked.get("metric"), asked.get("mode", "max")
        if is_column and not (isinstance(metric, str) and metric):
            raise GPartError(f"{place}: metric={metric!r}; each value of the columns' axis needs one, such as accuracy")
        if not is_column and metric is not None:
            raise GPartError(f"{place}: metric={metric!r} belongs on the axis of the columns")
        if not is_column and "mode" in asked:
            raise GPartError(f"{place}: mode={mode!r} belongs on the axis of the columns, beside metric")
        if mode not in MODES:
            raise GPartError(f"{place}: mode={mode!r} is none of {list(MODES)}")
        if is_column and str(label) in (AVERAGE, f"{AVERAGE}."):
            raise GPartError(f"{place}: {label!r} is the table's own column, the average")
        result.append(
            AxisValue(
                label=_label(label, where),
                config=_configs(asked.get("config"), f"{place}.config"),
                settings=_settings(asked.get("set"), f"{place}.set"),
                tune=_tune(asked.get("tune"), f"{place}.tune"),
                seeded=_seeded(asked.get("seeded"), f"{place}.seeded"),
                metric=metric.removeprefix("test/") if isinstance(metric, str) else None,
                mode=mode,
            )
        )
    return Axis(str(name), tuple(result))


def _distinct_rows(study: Study) -> None:
    """Refuses two rows of one label: the table would show them as one."""
    seen: dict[str, dict[str, str]] = {}
    for labels in study.row_labels:
        row = study.row_label(labels)
        if row in seen:
            raise GPartError(f"axes: the row {row!r} is there twice, of {seen[row]} and of {labels}; give other labels")
        seen[row] = labels


def _paper(study: Study, given: Mapping[Any, Any]) -> dict[str, dict[str, float]]:
    """Reads the paper's figures. Each must belong to a row and a column of the table."""
    columns = [*(value.label for value in study.column_axis.values), AVERAGE]
    paper: dict[str, dict[str, float]] = {}
    for row, figures in given.items():
        where = f"paper.{row}"
        _known(str(row), study.rows, "paper: row")
        paper[str(row)] = {}
        for column, figure in _mapping(figures, where).items():
            _known(str(column), columns, f"{where}: column")
            paper[str(row)][str(column)] = _number(figure, f"{where}.{column}")
    return paper


def _mapping(value: Any, where: str, keys: Sequence[str] | None = None) -> dict[Any, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise GPartError(f"{where}: {value!r} is no mapping")
    for key in value if keys is not None else ():
        _known(key, keys or (), f"{where}: key")
    return value


def _known(asked: Any, there: Iterable[str], what: str) -> None:
    names = list(there)
    if asked not in names:
        close = difflib.get_close_matches(str(asked), names, n=1)
        meant = f"did you mean {close[0]!r}? " if close else ""
        raise GPartError(f"{what} {asked!r} is not known; {meant}there are {', '.join(names)}")


def _label(value: Any, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int)) or not str(value).strip():
        raise GPartError(f"{where}: {value!r} ({type(value).__name__}) is no label; put it in quotes")
    return str(value)


def _configs(value: Any, where: str) -> tuple[str, ...]:
    names = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise GPartError(f"{where}: {value!r} is neither a recipe's name nor a list of such")
    return tuple(names)


def _settings(value: Any, where: str) -> dict[str, Any]:
    given = _mapping(value, where)
    for key, setting in given.items():
        if not isinstance(key, str) or not re.fullmatch(r"[A-Za-z_][\w.-]*\+?", key):
            raise GPartError(f"{where}: {key!r} is no dotted setting, such as model.lr")
        _refuse_own(key, setting, where)
        try:
            value_text(setting)
        except GPartError as error:
            raise GPartError(f"{where}.{key}: {error}") from None
    return given


def _refuse_own(key: str, setting: Any, where: str) -> None:
    """Refuses a setting that the study makes itself, also where it is written nested, as {trainer: {...}}."""
    if key in OWN_SETTINGS:
        instead = {"config": "use config:", "seed_everything": "use seeds:"}.get(key, "leave it out")
        raise GPartError(f"{where}: {key}={setting!r}, but the study sets {key} itself; {instead}")
    if isinstance(setting, dict):
        for name, inner in setting.items():
            _refuse_own(f"{key}.{name}", inner, where)


def _tune(value: Any, where: str) -> dict[str, tuple[Any, ...]]:
    given = _settings(value, where)
    for key, values in given.items():
        if not isinstance(values, list) or not values:
            raise GPartError(f"{where}.{key}: {values!r} is no list of values to choose from")
        for one in values:
            _refuse_own(key, one, where)
    return {key: tuple(values) for key, values in given.items()}


def _seeded(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list | None) or not all(isinstance(key, str) for key in value or ()):
        raise GPartError(f"{where}: {value!r} is no list of settings that take the run's seed, such as [data.seed]")
    return tuple(_settings(dict.fromkeys(value or []), where))


def _seeds(value: Any) -> tuple[int, ...]:
    whole = isinstance(value, list) and all(type(seed) is int and 0 <= seed < 2**32 for seed in value)
    if not whole or not value or len(set(value)) != len(value):
        raise GPartError(f"seeds={value!r} is no list of distinct whole numbers from 0 to 2**32 - 1, such as [0, 1, 2]")
    return tuple(value)


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise GPartError(f"{where}: {value!r} is no number")
    return value


def _repeated_key(node: yaml.Node | None, seen: set[int]) -> str | None:
    """Returns the first key that a mapping holds twice; None if there is none. YAML itself silently takes the last."""
    if node is None or id(node) in seen:
        return None
    seen.add(id(node))
    inner: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        keys = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = [text for index, (tag, text) in enumerate(keys) if (tag, text) in keys[:index]]
        if twice:
            return str(twice[0])
        inner = [value for _, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        inner = node.value
    found = (_repeated_key(child, seen) for child in inner)
    return next((key for key in found if key is not None), None)
