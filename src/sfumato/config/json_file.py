"""JSON from strangers: bounded, without duplicate keys, without NaN, and never a traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from sfumato.config.checkpoint_file import read_bounded
from sfumato.errors import ConfigError, SfumatoError

MAX_JSON_BYTES = 16 * 1024 * 1024


def parse_json(
    text: bytes, source: str, *, error: type[SfumatoError] = ConfigError
) -> dict[str, Any]:
    """The JSON object in `text`; `source` names it in errors of type `error`.

    Refused besides malformed text: a key given twice, NaN and infinities, numbers of more digits
    than Python converts, nesting beyond the recursion limit, and anything but an object on top.
    """

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in items:
            if key in found:
                raise error(f"{source}: the key {key!r} is there twice")
            found[key] = value
        return found

    def constant(name: str) -> NoReturn:
        raise error(f"{source}: {name} is not a JSON number")

    try:
        data = json.loads(text.decode("utf-8"), object_pairs_hook=pairs, parse_constant=constant)
    except RecursionError:
        raise error(f"{source}: nested too deeply to be read") from None
    except ValueError as problem:  # bad JSON, bad UTF-8, a number of thousands of digits
        raise error(f"{source}: not valid JSON: {_one_line(problem)}") from None
    if not isinstance(data, dict):
        raise error(f"{source}: a JSON object was expected, not {json_kind(data)}")
    return data


def read_json(
    path: Path, *, limit: int = MAX_JSON_BYTES, error: type[SfumatoError] = ConfigError
) -> dict[str, Any]:
    """The JSON object in the file at `path`, which may have at most `limit` bytes."""
    return parse_json(read_bounded(path, limit, error=error), str(path), error=error)


def json_kind(value: object) -> str:
    """What a person calls a JSON value of this type."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    kinds = {str: "a string", int: "an integer", float: "a number", list: "a list"}
    return kinds.get(type(value), "an object")


def _one_line(problem: Exception) -> str:
    return " ".join(str(problem).split())[:200]
