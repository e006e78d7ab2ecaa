"""The parts of a landscape that need no run: directions, Lanczos, the numbers beside the picture, what is kept."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from gpart.errors import GPartError
from gpart.studies.landscape.directions import draw, reference, scaled
from gpart.studies.landscape.figure import landscape_figure, limits
from gpart.studies.landscape.page import page
from gpart.studies.landscape.report import as_json, cautions, markdown, table
from gpart.studies.landscape.settings import Settings
from gpart.studies.landscape.store import Store
from gpart.studies.landscape.summary import Landscape, anisotropy, area, asymmetry, interpolate, summary

LINE = np.linspace(-1, 1, 21)
U, V = LINE[:, None] + 0 * LINE, LINE + 0 * LINE[:, None]


def landscape(surface: np.ndarray, name: str = "GPart", **facts: object) -> Landscape:
    shown = {"method": "GPartCallback", "of_head": False, "d": 5, "norm": 2.0, "change": 1.0, "rows": 64, "data": "abc"}
    centre = float(surface[len(surface) // 2, len(surface) // 2])
    every = np.stack([surface, surface])
    coordinates = np.linspace(-1, 1, len(surface))
    return Landscape(
        name, {**shown, "loss": centre, **facts}, coordinates, every, [(3.0, 0.1), (-1.0, 0.2)], 2.0, "best.ckpt"
    )


@pytest.mark.parametrize("normalise", ["whole", "filters"])
def test_a_direction_has_the_references_norm(normalise: str) -> None:
    parts = {"a": torch.randn(4, 3), "b": torch.randn(5)}
    direction = scaled(torch.randn(17), parts, normalise)
    assert direction.norm().item() == pytest.approx(
        torch.cat([value.ravel() for value in parts.values()]).norm().item()
    )


def test_each_filter_has_its_own_norm() -> None:
    parts = {"a": torch.randn(4, 3, 2), "b": torch.randn(5), "zero": torch.zeros(2, 2)}
    drawn = torch.randn(33)
    direction = scaled(drawn, parts, "filters")
    rows = direction[:24].view(4, 6)
    assert torch.allclose(rows.norm(dim=1), parts["a"].view(4, 6).norm(dim=1))
    assert torch.allclose(direction[24:29].norm(), parts["b"].norm())
    assert not direction[29:].any()
    assert torch.allclose(torch.nn.functional.cosine_similarity(rows, drawn[:24].view(4, 6)), torch.ones(4))


def test_theta_is_one_filter() -> None:
    theta, drawn = {"theta": torch.randn(50)}, torch.randn(50)
    assert torch.allclose(scaled(drawn, theta, "filters"), scaled(drawn, theta, "whole"))


def test_directions_differ_by_seed_and_are_the_same_again() -> None:
    (u, v), (again, _), (other, _) = draw(100, 0), draw(100, 0), draw(100, 1)
    assert torch.equal(u, again)
    assert not torch.equal(u, v)
    assert not torch.equal(u, other)


def test_what_has_not_moved_has_no_scale() -> None:
    with pytest.raises(GPartError, match="training has not moved it"):
        reference(torch.ones(3), torch.ones(3), "change")


def test_the_grid_is_symmetric_and_shares_its_points_with_coarser_ones() -> None:
    fine = Settings(points=21, span=0.7).coordinates()
    assert [-x for x in fine[::-1]] == fine
    assert fine[10] == 0
    assert set(Settings(points=11, span=0.7).coordinates()) <= set(fine)


@pytest.mark.parametrize(
    "wrong", [{"points": 4}, {"points": 1}, {"span": 0.0}, {"rows": 0}, {"seeds": (1, 1)}, {"steps": -1}]
)
def test_settings_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(GPartError, match=next(iter(wrong))):
        Settings(**wrong)


def test_the_bilinear_surface_goes_through_its_points() -> None:
    surface = np.arange(9.0).reshape(3, 3)
    line = np.array([-1.0, 0.0, 1.0])
    assert np.array_equal(interpolate(surface, line, line[:, None], line), surface)
    assert interpolate(surface, line, np.array([0.5]), np.array([-1.0])).tolist() == [4.5]


def test_the_area_is_the_share_within_a_tenth_of_the_trained_points_loss() -> None:
    circle = 1 + 0.1 * (U**2 + V**2) / 0.25  # 1.1 at the radius 0.5
    assert area(circle, LINE, 1.0) == pytest.approx(np.pi * 0.25 / 4, rel=0.02)
    assert area(np.ones((3, 3)), np.array([-1.0, 0, 1]), 1.0) == 1
    assert area(np.full((3, 3), np.inf), np.array([-1.0, 0, 1]), 1.0) == 0


def test_asymmetry_is_of_opposite_directions() -> None:
    assert asymmetry(3 + U**2 + 5 * U * V) == pytest.approx(0, abs=1e-9)
    assert asymmetry(U**2 + V**2 + 0.5 * U) > 0.1
    assert asymmetry(np.where(U > 0, np.inf, 1.0)) is None


def test_anisotropy_is_of_directions_that_are_not_opposite() -> None:
    bowl = U**2 + V**2
    assert anisotropy(bowl + 0.5 * U, LINE) == pytest.approx(0, abs=0.02)
    assert anisotropy(bowl + U * V, LINE) == pytest.approx(1, abs=0.05)  # from 0.5 to 1.5 of the mean
    assert anisotropy(bowl + 2 * U * V, LINE) == pytest.approx(2, abs=0.05)  # opposite corners rise, the others stay
    assert anisotropy(-bowl, LINE) is None


def test_the_summary_says_where_the_lowest_point_is() -> None:
    found = summary(landscape(2 + (U - 0.3) ** 2 + V**2))
    assert found["minimum"] == 2
    assert found["minimum_at"] == pytest.approx([0.3, 0])
    assert found["loss"] == pytest.approx(2.09)
    assert found["curvature"] == 3.0 * 4
    assert found["eigenvalues"][0] == [3.0, 0.1]
    assert found["smallest_eigenvalue"] == [-1.0, 0.2]


def test_a_killed_writers_last_line_is_no_measurement(tmp_path: Path) -> None:
    path = tmp_path / "points.jsonl"
    store = Store(path)
    store.add(("point", None, 0, -0.1), 0.12345678901234567)
    store.add(("facts",), {"loss": None})
    whole = path.read_bytes()
    path.write_bytes(whole + b'[["point", 3')
    again = Store(path)
    assert again.found == store.found
    again.add(("hessian",), [[1.0, 0.0]])
    assert len(Store(path).found) == 3
    assert path.read_bytes().startswith(whole)


@pytest.mark.parametrize("line", ["not json", "3", "[3, 4]", "[[[]], 1]"])
def test_a_damaged_line_is_told(tmp_path: Path, line: str) -> None:
    path = tmp_path / "points.jsonl"
    path.write_text(f'[["a"], 1]\n{line}\n[["b"], 2]\n')
    with pytest.raises(GPartError, match=r"points\.jsonl, line 2 is damaged .*: remove the line"):
        Store(path)


def test_all_runs_are_drawn_on_one_scale() -> None:
    flat, steep = landscape(1 + 0.1 * U**2), landscape(1 + 4 * (U**2 + V**2), "LoRA $x$")
    assert limits([flat, steep]) == (1, 9)
    axes = landscape_figure([flat, steep], "a title").axes
    solid = [one for one in axes if hasattr(one, "get_zlim")]
    assert [one.get_zlim() for one in solid] == [(1, 9), (1, 9)]
    scales = {
        one.norm.vmin
        for each in axes
        for one in each.collections
        if one.get_array() is not None and hasattr(one, "norm")
    }
    tops = {
        one.norm.vmax
        for each in axes
        for one in each.collections
        if one.get_array() is not None and hasattr(one, "norm")
    }
    assert 1 in scales
    assert 9 in tops


def test_an_overflow_is_drawn_at_the_top_and_written_as_none() -> None:
    torn = landscape(np.where(U > 0.5, np.inf, 1 + U**2))
    assert limits([torn])[1] < 3
    landscape_figure([torn], "")
    content = as_json([torn], Settings(points=21, seeds=(0, 1)), {})
    assert None in content["runs"][0]["surfaces"][0][-1]
    assert json.loads(json.dumps(content, allow_nan=False))["runs"] == content["runs"]
    assert content["runs"][0]["summary"]["highest"] is None


def test_a_diverged_point_has_a_landscape_without_numbers() -> None:
    nothing = dataclasses.replace(landscape(np.full((21, 21), np.inf), loss=None), eigenvalues=[])
    landscape_figure([nothing], "")
    content = as_json([nothing], Settings(points=21, seeds=(0, 1), steps=0), {})
    assert json.loads(json.dumps(content, allow_nan=False))["runs"][0]["summary"]["minimum"] is None
    assert {line[0]: line[1] for line in table([nothing])}["lowest loss, and where"] == "-"


def test_table_and_markdown_have_a_column_for_each_run() -> None:
    runs = [landscape(1 + U**2, "a|b"), landscape(1 + V**2, "LoRA")]
    lines = table(runs)
    assert lines[0] == ["run", "a|b", "LoRA"]
    assert {len(line) for line in lines} == {3}
    assert "a\\|b" in markdown(runs, Settings(), "gpart landscape a b")


def test_runs_that_were_evaluated_on_different_rows_are_pointed_out() -> None:
    same = landscape(U, "a"), landscape(V, "b", of_head=True)
    assert len(cautions(same)) == 1
    assert "head alone" in cautions(same)[0]
    assert "different validation rows" in cautions([landscape(U, "a"), landscape(V, "b", data="other")])[0]


def test_the_page_holds_its_data_as_data() -> None:
    content = {"title": "</script><script>alert(1)</script> DATA", "runs": [{"name": "a & b"}]}
    made = page(content)
    held = made.split('<script type="application/json" id="data">')[1].split("</script>")[0]
    assert json.loads(held) == content
    assert made.count("<script") == 2
    assert "src=" not in made
    assert "http" not in made.replace("http-equiv", "")
