"""Decoding settings: limits, replacement, and generation_config.json both ways."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfumato.config.generation import (
    GenerationConfig,
    load_generation_config,
    parse_generation,
)
from sfumato.errors import ConfigError, InputError, UsageError
from tests.helpers import Shape, tiny_config

TEXT = tiny_config(Shape()).text


def test_the_released_values_are_the_defaults() -> None:
    config = GenerationConfig()
    assert (config.max_denoising_steps, config.max_new_tokens) == (48, 256)
    assert (config.entropy_bound, config.t_min, config.t_max) == (0.1, 0.4, 0.8)
    assert (config.stability_threshold, config.confidence_threshold) == (1, 0.005)
    assert config.eos_token_id == (1, 106, 50)
    assert dataclasses.fields(config)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.t_min = 0.1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"max_new_tokens": 0}, "between 1 and"),
        ({"max_new_tokens": -1}, "between 1 and"),
        ({"max_new_tokens": 2**31}, "between 1 and"),
        ({"max_new_tokens": 2**63}, "between 1 and"),
        ({"max_new_tokens": "1"}, "must be an integer"),
        ({"max_new_tokens": None}, "must be an integer"),
        ({"max_new_tokens": True}, "must be an integer"),
        ({"max_denoising_steps": 0}, "between 1 and"),
        ({"max_denoising_steps": 4.0}, "must be an integer"),
        ({"stability_threshold": -1}, "between 0 and"),
        ({"entropy_bound": 0}, "above 0"),
        ({"entropy_bound": float("nan")}, "finite"),
        ({"entropy_bound": float("inf")}, "finite"),
        ({"entropy_bound": 10**400}, "at most 1e12"),
        ({"entropy_bound": "0.1"}, "must be a number"),
        ({"confidence_threshold": -0.5}, "above 0"),
        ({"temperature": 0.0}, "above 0"),
        ({"temperature": 1e-320}, "above 1e-12"),
        ({"t_max": 1e-299, "t_min": 1e-300}, "t_max must be above 1e-12"),
        ({"t_min": -0.1}, "0 or more"),
        ({"t_min": 0.8}, "t_max must be above t_min"),
        ({"t_max": True}, "must be a number"),
        ({"eos_token_id": (-1,)}, "between 0 and"),
        ({"eos_token_id": "1"}, "must be token ids"),
        ({"eos_token_id": (1, None)}, "must be an integer"),
        ({"eos_token_id": True}, "must be an integer"),
        ({"pad_token_id": -1}, "between 0 and"),
        ({"do_sample": 1}, "true or false"),
    ],
)
def test_values_that_cannot_be(change: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        GenerationConfig(**change)
    assert isinstance(caught.value, UsageError)
    assert next(iter(change)) in str(caught.value)
    with pytest.raises(InputError, match=words):
        GenerationConfig().replace(**change)


def test_replace_keeps_the_rest_and_knows_its_names() -> None:
    config = GenerationConfig(max_denoising_steps=7).replace(t_min=0, eos_token_id=[3])
    assert (config.max_denoising_steps, config.t_min, config.eos_token_id) == (7, 0.0, (3,))
    assert isinstance(config.t_min, float)
    with pytest.raises(InputError, match="did you mean entropy_bound"):
        config.replace(entropy_bond=1)
    with pytest.raises(InputError, match="known: max_new_tokens"):
        config.replace(zzz=1)


def test_a_file_as_the_reference_saves_it() -> None:
    data = {
        "_from_model_config": True,
        "confidence_threshold": None,
        "eos_token_id": [1, 5],
        "max_denoising_steps": 12,
        "return_dict_in_generate": True,
        "sampler_config": {"_cls_name": "EntropyBoundSamplerConfig", "entropy_bound": 0.25},
        "stability_threshold": None,
        "t_max": 0.9,
        "transformers_version": "5.23.0",
    }
    config = parse_generation(data, TEXT)
    assert config == GenerationConfig(
        eos_token_id=(1, 5), max_denoising_steps=12, entropy_bound=0.25, t_max=0.9
    )


def test_ids_a_file_leaves_open_are_the_model_s(tmp_path: Path) -> None:
    assert load_generation_config(tmp_path, TEXT).eos_token_id == TEXT.eos_token_id
    assert parse_generation({"eos_token_id": 9}, TEXT).eos_token_id == (9,)
    assert parse_generation({"pad_token_id": None}, TEXT).pad_token_id is None


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"sampler_config": {"_cls_name": "Other", "entropy_bound": 1.0}}, "_cls_name is unsup"),
        ({"sampler_config": {"entropy_bound": 0.0}}, "sampler_config.entropy_bound must be above"),
        ({"sampler_config": {"entropy_bound": 0.1, "top_k": 1}}, "sampler_config.top_k"),
        ({"top_p": 0.9}, "unknown field top_p"),
        ({"max_length": 99}, "max_length is unsupported"),
        ({"t_min": 0.9}, "t_max is 0.8, which must be above t_min, 0.9"),
        ({"t_min": -0.5}, "which must be above t_min"),
        ({"t_min": 0.0, "t_max": 1e-13}, "t_max must be above 1e-12"),
        ({"temperature": 1e-13}, "temperature must be above 1e-12"),
        ({"max_new_tokens": -1}, "max_new_tokens must be between"),
        ({"eos_token_id": 97}, "eos_token_id holds 97, outside the vocabulary of 97"),
        ({"eos_token_id": [1, 96, 106]}, "eos_token_id holds 106, outside the vocabulary of 97"),
        ({"eos_token_id": [1.5]}, "eos_token_id must hold integers"),
        ({"custom_generate": "x.py"}, "asks for Python code"),
    ],
)
def test_files_that_cannot_be(data: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_generation(data, TEXT)
    assert words in str(caught.value)


NUMBERS = st.floats(1e-6, 1e6)


@given(
    st.builds(
        GenerationConfig,
        max_new_tokens=st.integers(1, 2**31 - 1),
        max_denoising_steps=st.integers(1, 10_000),
        entropy_bound=NUMBERS,
        t_min=st.floats(0.0, 0.7),
        t_max=st.floats(0.71, 5.0),
        stability_threshold=st.integers(0, 50),
        confidence_threshold=NUMBERS,
        eos_token_id=st.lists(st.integers(0, 96), min_size=1, max_size=4).map(tuple),
        pad_token_id=st.none() | st.integers(0, 9),
    )
)
def test_writing_and_reading_gives_the_settings_again(config: GenerationConfig) -> None:
    data = json.loads(json.dumps(config.to_json()))
    assert parse_generation(data, TEXT) == config


def test_restarts_have_a_file_of_their_own(tmp_path: Path) -> None:
    """transformers refuses settings that it does not know."""
    config = GenerationConfig(restart_steps=24)
    assert config.own_json() == {"decoding": {"restart_steps": 24}}
    assert GenerationConfig().own_json() is None
    assert "restart_steps" not in config.to_json()
    text = TEXT
    (tmp_path / "sfumato.json").write_text(json.dumps(config.own_json()))
    assert load_generation_config(tmp_path, text).restart_steps == 24
    bad: dict[str, Any]
    for bad in ({"decoding": {"restart_steps": 0}}, {"decoding": {}}, {"decodin": {}}):
        (tmp_path / "sfumato.json").write_text(json.dumps(bad))
        with pytest.raises(ConfigError):
            load_generation_config(tmp_path, text)
    with pytest.raises(InputError, match="restart_steps must be between 1"):
        GenerationConfig(restart_steps=0)
