"""Sweeps: which settings they try, that the rows are paired, and the whole way to a plot."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfumato.api import Model
from sfumato.config.generation import GenerationConfig
from sfumato.errors import EvaluationError, InputError
from sfumato.evaluation import facts, plot, report
from sfumato.evaluation.run import Progress, evaluate
from sfumato.evaluation.sweep import Sweep, label, run_sweep
from sfumato.tasks.base import Example
from tests.unit.evaluation_models import Oracle, tiny_model

BASE = GenerationConfig()
EXAMPLES = [Example("echo", f"say {n}", f"say {n}") for n in range(20)]
steps = st.lists(st.integers(1, 99), unique=True, max_size=4).map(tuple)
bounds = st.lists(st.floats(0.01, 2), unique=True, max_size=4).map(tuple)
pairs = st.lists(
    st.tuples(st.floats(0, 0.9), st.floats(1, 2)), unique=True, max_size=3
).map(tuple)  # fmt: skip


def test_cartesian_tries_every_combination() -> None:
    sweep = Sweep(max_denoising_steps=(4, 8), entropy_bound=(0.1, 0.5, 1.0))
    tried = [(s.max_denoising_steps, s.entropy_bound) for s in sweep.settings(BASE)]
    assert tried == [(4, 0.1), (4, 0.5), (4, 1.0), (8, 0.1), (8, 0.5), (8, 1.0)]


def test_one_at_a_time_starts_with_the_unchanged() -> None:
    sweep = Sweep(
        max_denoising_steps=(4, 48), temperatures=((0.1, 0.3),), design="one-at-a-time"
    )  # fmt: skip
    assert sweep.settings(BASE) == (
        BASE,
        BASE.replace(max_denoising_steps=4),
        BASE.replace(t_min=0.1, t_max=0.3),
    )  # 48 steps are what the base has


@given(steps, bounds, pairs)
def test_counts_of_the_designs(
    many: tuple[int, ...], bound: tuple[float, ...], pair: tuple[tuple[float, float], ...]
) -> None:
    cartesian = Sweep(max_denoising_steps=many, entropy_bound=bound, temperatures=pair)
    settings = cartesian.settings(BASE)
    assert len(settings) == max(1, len(many)) * max(1, len(bound)) * max(1, len(pair))
    assert len(set(settings)) == len(settings)
    single = dataclasses.replace(cartesian, design="one-at-a-time").settings(BASE)
    assert single[0] == BASE
    assert len(set(single)) == len(single) <= 1 + len(many) + len(bound) + len(pair)
    for one in single:
        changed = {k for k, v in vars(one).items() if v != getattr(BASE, k)}
        assert len(changed) <= 1 or changed <= {"t_min", "t_max"}


def test_an_empty_sweep_is_the_setting_as_it_is() -> None:
    assert Sweep().settings(BASE) == (BASE,)
    assert Sweep().axes == ()


def test_what_a_sweep_does_not_name_stays() -> None:
    base = GenerationConfig(max_new_tokens=77, stability_threshold=3, eos_token_id=(9,))
    (one,) = Sweep(confidence_threshold=(0.5,)).settings(base)
    assert one == base.replace(confidence_threshold=0.5)


def test_a_value_twice_is_an_error() -> None:
    with pytest.raises(EvaluationError, match=r"entropy_bound names a value twice: \[0.1, 0.1\]"):
        Sweep(entropy_bound=(0.1, 0.1))


def test_an_unknown_design_is_an_error() -> None:
    with pytest.raises(EvaluationError, match="not 'random'"):
        Sweep(design="random")  # type: ignore[arg-type]


def test_impossible_values_are_told_before_any_example_is_asked() -> None:
    oracle = Oracle(lambda prompt: prompt)
    for sweep in (
        Sweep(max_denoising_steps=(4, 0)),
        Sweep(entropy_bound=(-1.0,)),
        Sweep(temperatures=((0.9, 0.2),)),
    ):
        with pytest.raises(InputError):
            run_sweep(oracle.model, EXAMPLES, sweep)
    assert oracle.batches == []


def test_rows_are_paired() -> None:
    oracle = Oracle(lambda prompt: prompt)
    sweep = Sweep(max_denoising_steps=(2, 4, 6), autoregressive=True)
    found = run_sweep(oracle.model, EXAMPLES, sweep, seed=9, batch_size=6)
    assert len(found.rows) == 4
    assert set(oracle.seeds) == {one.prompt for one in EXAMPLES}
    for seeds in oracle.seeds.values():
        assert len(seeds) == 4
        assert len(set(seeds)) == 1
    modes = [mode for _, mode in dict.fromkeys(oracle.calls)]
    assert modes == ["diffusion"] * 3 + ["autoregressive"]


def test_a_row_equals_the_evaluation_of_its_setting(tiny: Model) -> None:
    sweep = Sweep(max_denoising_steps=(1, 3))
    found = run_sweep(tiny, ["dates", "units"], sweep, n=4, seed=1, batch_size=3)
    for row in found.rows:
        alone = evaluate(tiny, ["dates", "units"], 4, 1, row.plan.generation, batch_size=2)
        for one, other in zip(row.results, alone.results, strict=True):
            assert (one.task, one.solved) == (other.task, other.solved)
            assert one.steps_per_canvas == other.steps_per_canvas
            assert one.tokens_per_forward == other.tokens_per_forward


def test_progress_names_the_setting() -> None:
    told: list[Progress] = []
    sweep = Sweep(
        max_denoising_steps=(2,), temperatures=((0.1, 0.5),), autoregressive=True
    )  # fmt: skip
    oracle = Oracle(lambda prompt: prompt)
    found = run_sweep(oracle.model, EXAMPLES, sweep, batch_size=50, on_progress=told.append)
    names = ["steps 2, temperature 0.5 to 0.1", "autoregressive"]
    assert [one.setting for one in told] == names
    assert [label(row.plan, sweep) for row in found.rows] == names


def test_curves_join_points_that_differ_in_steps_alone() -> None:
    oracle = Oracle(lambda prompt: prompt)
    sweep = Sweep(max_denoising_steps=(2, 4), entropy_bound=(0.1, 1.0), autoregressive=True)
    drawn = plot.curves(run_sweep(oracle.model, EXAMPLES, sweep))
    assert [one.name for one in drawn] == ["echo, entropy bound 0.1", "echo, entropy bound 1"]
    assert [len(one.points) for one in drawn] == [2, 2]


@pytest.mark.parametrize(
    "sweep",
    [
        Sweep(entropy_bound=(0.1, 0.5, 1.0)),
        Sweep(max_denoising_steps=(2, 4), entropy_bound=(0.7,), design="one-at-a-time"),
    ],
)
def test_otherwise_a_curve_is_a_task(sweep: Sweep) -> None:
    oracle = Oracle(lambda prompt: prompt)
    others = [Example("other", f"x{n}", "") for n in range(4)]
    drawn = plot.curves(run_sweep(oracle.model, [*EXAMPLES, *others], sweep))
    assert [one.name for one in drawn] == ["echo", "other"]
    assert [len(one.points) for one in drawn] == [len(sweep.settings(BASE))] * 2


def test_points_of_a_curve_go_from_few_steps_to_many(tiny: Model) -> None:
    found = run_sweep(tiny, "dates", Sweep(max_denoising_steps=(4, 1, 2)), n=2)
    (curve,) = plot.curves(found)
    taken = [one.steps_per_canvas for one in curve.points]
    assert None not in taken
    assert taken == sorted(taken, key=lambda one: one or 0.0)
    assert taken[0] == 1.0


def test_end_to_end(tiny: Model, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    sweep = Sweep(max_denoising_steps=(1, 4), entropy_bound=(0.1, 5.0), autoregressive=True)
    found = run_sweep(tiny, ["dates", "copy"], sweep, n=3, seed=7, batch_size=3)
    known = facts.gather(tiny, "tiny", commit="abc")

    header, rows = report.table(found)
    assert header[:3] == ("task", "steps", "entropy bound")
    assert len(rows) == 2 * 5
    assert [row[1] for row in rows[:5]] == ["1", "1", "4", "4", "autoregressive"]
    assert rows[4][2] == "-"

    data = json.loads(json.dumps(report.to_json(found, known)))
    assert (data["kind"], len(data["rows"])) == ("sweep", 5)
    assert [one["task"] for one in data["rows"][0]["results"]] == ["dates", "copy"]
    assert data["rows"][2]["settings"]["max_denoising_steps"] == 4
    assert data["sweep"]["max_denoising_steps"] == [1, 4]

    drawing = plot.write_plot(found, tmp_path / "curve.svg").read_text(encoding="utf-8")
    assert drawing.startswith("<?xml")
    assert plot.write_plot(found, tmp_path / "again.svg").read_text(encoding="utf-8") == drawing
    picture = plot.write_plot(found, tmp_path / "curve.PNG").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["again.svg", "curve.PNG", "curve.svg"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("name", ["curve.pdf", "curve", "curve.svg.txt"])
def test_a_plot_of_another_kind_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(EvaluationError, match=r"\.svg or \.png"):
        plot.check_plot(tmp_path / name)


def test_without_matplotlib_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(EvaluationError, match=r"sfumato\[train\]"):
        plot.check_plot(tmp_path / "curve.svg")


def test_a_plot_into_no_folder_is_refused_early(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="there is no folder"):
        plot.check_plot(tmp_path / "gone" / "curve.svg")
    with pytest.raises(EvaluationError, match="is a folder"):
        plot.check_plot(tmp_path)
