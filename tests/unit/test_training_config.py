"""Recipes: the shipped ones parse, and every mistake is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sfumato.errors import ConfigError
from sfumato.training.config import load_train_config, parse_train_config
from tests.unit.source_tree import ROOT
from tests.unit.training_runs import recipe, toml


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda p: p.name)
def test_shipped_recipes_are_valid(path: Path) -> None:
    config = load_train_config(path)
    assert config.model.build().canvas_length == config.model.canvas_length


def test_a_recipe_as_toml_is_the_same_recipe(tmp_path: Path) -> None:
    tables = recipe(tmp_path)
    path = tmp_path / "recipe.toml"
    path.write_text(toml(tables))
    assert load_train_config(path) == parse_train_config(tables)


def test_the_defaults_are_googles_column(tmp_path: Path) -> None:
    config = parse_train_config(recipe(tmp_path))
    assert (config.noise.t_min, config.noise.t_max, config.noise.power) == (1e-4, 1 - 1e-4, 1.0)
    assert (config.noise.supervised, config.noise.weight) == ("all", "flat")
    assert config.conditioning.probability == 0.5
    assert config.conditioning.rollout_steps == 0
    assert config.families[0].encoder_weight == 1.0
    assert config.families[0].encoder_probability == 1.0
    assert config.families[0].encoder_on == "all"


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"stepz": 3}, "unknown field stepz"),
    ({"max_steps": 0}, "max_steps must be between 1"),
    ({"max_steps": True}, "max_steps must be an integer"),
    ({"run_dir": " "}, "run_dir is empty"),
    ({"workers": 2, "compile": True}, "workers must be 1 with compile = true"),
    ({"experts": "few"}, "experts is 'few', not one of dense, grouped"),
    ({"precision": "fp8"}, "precision is 'fp8', not one of bfloat16, float32"),
    ({"family": []}, "family must be one or more"),
    ({"family": [{"source": "sudoku"}]}, r"family\[0\].rows is missing"),
    ({"noise": {"t_min": 0.9, "t_max": 0.1}}, r"noise.t_min is above t_max"),
    ({"noise": {"weight": "1/t", "t_min": 0}}, r"noise.t_min must be above 0"),
    ({"noise": {"weight": "t"}}, "noise.weight is 't'"),
    ({"noise": {"colour": 1}}, r"unknown field noise.colour"),
    (
        {"conditioning": {"probability": 1.5}},
        r"conditioning.probability must be above 0 and at most 1",
    ),
    ({"conditioning": {"t_min": 0.9}}, r"conditioning.t_min is above t_max"),
    ({"optimiser": {"momentum": 1}}, r"optimiser.momentum must be below 1"),
    ({"optimiser": {"muon_lr": -1}}, r"optimiser.muon_lr must be above 0"),
    ({"optimiser": {"schedule": "step"}}, r"optimiser.schedule is 'step'"),
    ({"evaluation": {"tasks": "dates"}}, r"evaluation.tasks must be a list"),
    ({"data": {"text_weights": {"dates": -1}}}, r"data.text_weights.dates must be above 0"),
    ({"data": {"text_weights": 3}}, r"data.text_weights must be a table"),
]


@pytest.mark.parametrize(("changes", "message"), MISTAKES, ids=lambda v: str(v)[:40])
def test_mistakes_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_train_config(recipe(tmp_path, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "poems"}, r"family\[0\].source is 'poems'"),
        ({"source": "sudoku:50-41"}, r"family\[0\].source is 'sudoku:50-41'.* cannot be made"),
        ({"canvas_width": 13}, r"family\[0\].canvas_width is more than model.canvas_length, 12"),
        ({"stream_width": 23}, r"family\[0\].stream_width is less than prompt_width"),
        ({"stream_width": 4090}, r"family\[0\].stream_width leaves no room"),
        ({"encoder_on": "prompt"}, r"family\[0\].encoder_on is 'prompt'"),
        ({"leftover": True}, r"family\[0\].leftover needs fitting_only"),
        ({"weights": 2.0}, r"unknown field family\[0\].weights"),
    ],
)
def test_family_mistakes_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    tables = recipe(tmp_path)
    tables["family"][0] |= changes
    with pytest.raises(ConfigError, match=message):
        parse_train_config(tables)


def test_leftovers_that_are_none_are_refused(tmp_path: Path) -> None:
    tables = recipe(tmp_path)
    family = tables["family"][0] | {"fitting_only": True}
    tables["family"] = [family, family | {"leftover": True}]
    with pytest.raises(ConfigError, match=r"family\[1\].leftover .* is as wide"):
        parse_train_config(tables)
    tables["family"] = [family | {"source": "text"}, family | {"leftover": True}]
    with pytest.raises(ConfigError, match=r"family\[1\].leftover .* no earlier family"):
        parse_train_config(tables)
    tables["family"] = [family | {"prompt_width": 8}, family | {"leftover": True}]
    assert parse_train_config(tables).families[1].leftover


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pattern": "SFX"}, "model.pattern is 'SFX'"),
        ({"pattern": "FS"}, "model.pattern is 'FS'"),
        ({"top_k_experts": 9}, "top_k_experts is 9, more than the 4"),
        ({"head_dim": 7}, "head_dim must be even"),
        ({"depth": 3}, r"unknown field model.depth"),
    ],
)
def test_model_mistakes_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    tables = recipe(tmp_path)
    tables["model"] = tables["model"] | changes
    with pytest.raises(ConfigError, match=message):
        parse_train_config(tables)


def test_files_that_are_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_train_config(tmp_path / "none.toml")
    path = tmp_path / "bad.toml"
    path.write_text("a = = 1")
    with pytest.raises(ConfigError, match=r"bad\.toml: is not TOML"):
        load_train_config(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not TOML"):
        load_train_config(path)
    path.write_bytes(b"#" * (1 << 20) + b"\n")
    with pytest.raises(ConfigError, match="1,048,577 bytes are no recipe"):
        load_train_config(path)
    for other in (tmp_path, Path("/dev/zero")):
        with pytest.raises(ConfigError, match="is no file"):
            load_train_config(other)
