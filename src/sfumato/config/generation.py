"""How the model decodes: the settings of generation_config.json, frozen and validated."""

from __future__ import annotations

import dataclasses
import difflib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfumato.config.checkpoint_file import is_there
from sfumato.config.fields import MAX_INT, Fields, short
from sfumato.config.json_file import read_json
from sfumato.config.model import TextConfig
from sfumato.errors import InputError

# What transformers writes beside the settings; none of it changes which tokens come out.
_HARMLESS = (
    "_commit_hash",
    "_from_model_config",
    "cache_config",
    "cache_implementation",
    "disable_compile",
    "return_dict_in_generate",
    "transformers_version",
)
OWN_FILE = "sfumato.json"  # settings that the field's own files have no place for
_INTEGERS = {"max_new_tokens": 1, "max_denoising_steps": 1, "stability_threshold": 0}
LEAST_TEMPERATURE = 1e-12  # logits divided by far less are infinite in float32
_NUMBERS = ("entropy_bound", "t_min", "t_max", "confidence_threshold", "temperature")


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """Decoding settings, with the names of generation_config.json and the released values.

    The limits are the reference's. `restart_steps` is sfumato's own: a canvas that is not done
    after so many steps starts anew, within `max_denoising_steps`; None, as in the reference, never.
    `do_sample` and `temperature` are for the autoregressive mode alone. Raises InputError for a
    value of the wrong type or outside its limits.
    """

    max_new_tokens: int = 256
    max_denoising_steps: int = 48
    entropy_bound: float = 0.1
    t_min: float = 0.4
    t_max: float = 0.8
    stability_threshold: int = 1
    confidence_threshold: float = 0.005
    eos_token_id: tuple[int, ...] = (1, 106, 50)
    pad_token_id: int | None = 0
    bos_token_id: int | None = 2
    do_sample: bool = False
    temperature: float = 1.0
    restart_steps: int | None = None

    def __post_init__(self) -> None:
        for name, low in _INTEGERS.items():
            _check_integer(name, getattr(self, name), low)
        for name in _NUMBERS:
            object.__setattr__(self, name, _checked_number(name, getattr(self, name)))
        for name in ("entropy_bound", "confidence_threshold", "temperature"):
            if getattr(self, name) <= 0:
                raise InputError(f"{name} must be above 0, not {getattr(self, name)}")
        if self.t_min < 0:
            raise InputError(f"t_min must be 0 or more, not {self.t_min}")
        if self.t_max <= self.t_min:
            raise InputError(
                f"t_max must be above t_min, and {self.t_max} is not above {self.t_min}",
                hint="the temperature falls from t_max to t_min over the denoising steps",
            )
        for name in ("t_max", "temperature"):
            if getattr(self, name) <= LEAST_TEMPERATURE:
                raise InputError(
                    f"{name} must be above {LEAST_TEMPERATURE}, not {getattr(self, name)}",
                    hint="what is divided by less is no number any more",
                )
        if not isinstance(self.do_sample, bool):
            raise InputError(f"do_sample must be true or false, not {short(self.do_sample)}")
        object.__setattr__(self, "eos_token_id", _checked_ids(self.eos_token_id))
        for name, low in {"pad_token_id": 0, "bos_token_id": 0, "restart_steps": 1}.items():
            if getattr(self, name) is not None:
                _check_integer(name, getattr(self, name), low)

    def replace(self, **changes: Any) -> GenerationConfig:
        """A copy with some settings changed; InputError names one that does not exist."""
        known = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                raise InputError(
                    f"there is no generation setting {name!r}",
                    hint=f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}",
                )
        return dataclasses.replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        """The JSON object of generation_config.json, as transformers reads it.

        `do_sample` and `temperature` are left out: that class refuses fields it does not know.
        `restart_steps` is in `own_json` for the same reason.
        """
        return {
            "bos_token_id": self.bos_token_id,
            "confidence_threshold": self.confidence_threshold,
            "eos_token_id": list(self.eos_token_id) or None,
            "max_denoising_steps": self.max_denoising_steps,
            "max_new_tokens": self.max_new_tokens,
            "pad_token_id": self.pad_token_id,
            "sampler_config": {
                "_cls_name": "EntropyBoundSamplerConfig",
                "entropy_bound": self.entropy_bound,
            },
            "stability_threshold": self.stability_threshold,
            "t_max": self.t_max,
            "t_min": self.t_min,
        }

    def own_json(self) -> dict[str, Any] | None:
        """The JSON object of sfumato.json, None if there is nothing to say in it."""
        if self.restart_steps is None:
            return None
        return {"decoding": {"restart_steps": self.restart_steps}}


def load_generation_config(folder: str | Path, text: TextConfig) -> GenerationConfig:
    """The settings in the checkpoint's generation_config.json, or the defaults without one.

    What sfumato.json says of decoding, where there is one, comes on top. Token ids the files leave
    open come from `text`. Raises ConfigError for a damaged file, an unknown field or an impossible
    value.
    """
    path = Path(folder) / "generation_config.json"
    config = _from_fields(Fields(read_json(path) if is_there(path) else {}, str(path)), text)
    own = Path(folder) / OWN_FILE
    return config if not is_there(own) else config.replace(**_own_settings(own))


def _own_settings(path: Path) -> dict[str, Any]:
    """What a sfumato.json sets."""
    fields = Fields(read_json(path), str(path))
    decoding = fields.child("decoding")
    settings = {"restart_steps": decoding.integer("restart_steps")}
    decoding.finish()
    fields.finish()
    return settings


def parse_generation(
    data: dict[str, Any], text: TextConfig, source: str = "generation_config.json"
) -> GenerationConfig:
    """The settings in the JSON object `data`; null counts as absent."""
    return _from_fields(Fields(data, source), text)


def _from_fields(fields: Fields, text: TextConfig) -> GenerationConfig:
    default = GenerationConfig()
    entropy_bound = default.entropy_bound
    if fields.has("sampler_config"):
        sampler = fields.child("sampler_config")
        sampler.only("_cls_name", "EntropyBoundSamplerConfig", "only this sampler is built")
        entropy_bound = sampler.number("entropy_bound")
        sampler.finish()
    fields.ignore((*_HARMLESS, "sampler_config"))
    if fields.has("max_length"):
        raise fields.unsupported("max_length", "use max_new_tokens, which leaves the prompt out")
    fields.ignore(("max_length",))
    t_min = fields.number("t_min", default.t_min, above=-1.0)
    t_max = fields.number("t_max", default.t_max, above=LEAST_TEMPERATURE)
    if not 0 <= t_min < t_max:
        raise fields.error("t_max", f"is {t_max}, which must be above t_min, {t_min}, and that 0")
    # An error, not a warning: an id that cannot be drawn never stops anything, and files that
    # transformers writes have none (its default stop id is 1, others come from the model's own).
    stops = fields.token_ids("eos_token_id", vocabulary=text.vocab_size)
    config = GenerationConfig(
        max_new_tokens=fields.integer("max_new_tokens", default.max_new_tokens),
        max_denoising_steps=fields.integer("max_denoising_steps", default.max_denoising_steps),
        entropy_bound=entropy_bound,
        t_min=t_min,
        t_max=t_max,
        stability_threshold=fields.integer(
            "stability_threshold", default.stability_threshold, low=0
        ),
        confidence_threshold=fields.number("confidence_threshold", default.confidence_threshold),
        eos_token_id=stops or text.eos_token_id,
        pad_token_id=fields.optional_integer("pad_token_id", text.pad_token_id),
        bos_token_id=fields.optional_integer("bos_token_id", text.bos_token_id),
        do_sample=fields.boolean("do_sample", default.do_sample),
        temperature=fields.number("temperature", default.temperature, above=LEAST_TEMPERATURE),
    )
    fields.finish()
    return config


def _check_integer(name: str, value: object, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{name} must be an integer, not {short(value)}")
    if not low <= value <= MAX_INT:
        raise InputError(f"{name} must be between {low} and {MAX_INT}, not {short(value)}")


def _checked_number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{name} must be a number, not {short(value)}")
    if not abs(value) <= 1e12 or not math.isfinite(value):
        raise InputError(f"{name} must be a finite number of at most 1e12, not {short(value)}")
    return float(value)


def _checked_ids(value: object) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else value
    if not isinstance(values, tuple | list):
        raise InputError(f"eos_token_id must be token ids, not {short(value)}")
    for entry in values:
        _check_integer("eos_token_id", entry, 0)
    return tuple(values)
