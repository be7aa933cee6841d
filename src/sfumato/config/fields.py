"""One JSON object read field by field: every field typed, bounded and named, none left over."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any

from sfumato.config.json_file import json_kind
from sfumato.errors import ConfigError

MAX_INT = 2**31 - 1
_MISSING = object()
# Each of these makes transformers import and run a Python file that comes with the checkpoint.
_ASKS_FOR_CODE = ("auto_map", "custom_pipelines", "custom_generate", "trust_remote_code")


class Fields:
    """Takes fields out of `data` one by one; `finish` refuses what nobody took.

    `where` is the path of the object in its file ("" for the top), `source` the file's name.
    A default makes a field optional; JSON null counts as absent unless the taker says otherwise.
    """

    def __init__(self, data: object, source: str, where: str = "") -> None:
        self.source = source
        self.where = where
        if not isinstance(data, Mapping):
            raise ConfigError(
                f"{source}: {where or 'top'} must be an object, not {json_kind(data)}"
            )
        self._left: dict[str, Any] = dict(data)
        self._known: set[str] = set()
        for name in _ASKS_FOR_CODE:
            if name in self._left:
                raise self.error(
                    name,
                    "asks for Python code of the checkpoint to be run, which is refused",
                    hint="use a checkpoint without it",
                )

    def path(self, name: str) -> str:
        """The field's full path, as errors name it: printable and not too long."""
        name = name if name.isprintable() and len(name) <= 80 else short(name)
        return f"{self.where}.{name}" if self.where else name

    def error(self, name: str, problem: str, *, hint: str = "") -> ConfigError:
        """The error that says what is wrong with field `name`."""
        return ConfigError(f"{self.source}: {self.path(name)} {problem}", hint=hint)

    def unsupported(self, name: str, what: str) -> ConfigError:
        """The error for a field whose meaning is known and not implemented."""
        return self.error(name, f"is unsupported: {what}")

    def has(self, name: str) -> bool:
        """Whether the field is there, not yet taken and not null."""
        return self._left.get(name) is not None

    def names(self) -> list[str]:
        """The names of the fields nobody has taken yet."""
        return list(self._left)

    def is_null(self, name: str) -> bool:
        """Whether the field is there and null, where null means something else than absent."""
        return name in self._left and self._left[name] is None

    def take(self, name: str, default: Any = _MISSING) -> Any:
        """The raw value of a field; null counts as absent."""
        self._known.add(name)
        value = self._left.pop(name, None)
        if value is not None:
            return value
        if default is _MISSING:
            raise self.error(name, "is missing")
        return default

    def integer(
        self, name: str, default: Any = _MISSING, *, low: int = 1, high: int = MAX_INT
    ) -> int:
        """An integer in [low, high]; neither true nor 3.0 is one."""
        value = self.take(name, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(name, f"must be an integer, not {json_kind(value)}")
        if not low <= value <= high:
            raise self.error(name, f"must be between {low} and {high}, not {short(value)}")
        return value

    def optional_integer(
        self, name: str, default: int | None = None, *, low: int = 0, high: int = MAX_INT
    ) -> int | None:
        """Like `integer`, where an explicit null means none and an absent field the default."""
        if name not in self._left:
            self._known.add(name)
            return default
        return self.integer(name, low=low, high=high) if self.has(name) else self.take(name, None)

    def number(
        self, name: str, default: Any = _MISSING, *, above: float = 0.0, most: float = 1e12
    ) -> float:
        """A finite number in (above, most], as a float."""
        value = self.take(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(name, f"must be a number, not {json_kind(value)}")
        # Compared before it is converted: an integer of 400 digits does not fit in a float.
        if (isinstance(value, float) and not math.isfinite(value)) or not above < value <= most:
            raise self.error(name, f"must be above {above:g} and at most {most:g}")
        return float(value)

    def boolean(self, name: str, default: Any = _MISSING) -> bool:
        """True or false; 1 and "true" are neither."""
        value = self.take(name, default)
        if not isinstance(value, bool):
            raise self.error(name, f"must be true or false, not {json_kind(value)}")
        return value

    def string(self, name: str, default: Any = _MISSING) -> str:
        """A string."""
        value = self.take(name, default)
        if not isinstance(value, str):
            raise self.error(name, f"must be a string, not {json_kind(value)}")
        return value

    def token_ids(
        self, name: str, default: tuple[int, ...] = (), *, vocabulary: int
    ) -> tuple[int, ...]:
        """One token id or a list of them, each below `vocabulary`; an explicit null means none."""
        if name not in self._left:
            self._known.add(name)
            return default
        value = self.take(name, [])
        values = value if isinstance(value, list) else [value]
        for entry in values:
            if isinstance(entry, bool) or not isinstance(entry, int):
                raise self.error(name, f"must hold integers, not {json_kind(entry)}")
            if not 0 <= entry <= MAX_INT:
                raise self.error(name, f"holds {short(entry)}, which is no token id")
            if entry >= vocabulary:
                raise self.error(
                    name,
                    f"holds {entry}, outside the vocabulary of {vocabulary}",
                    hint="no answer could ever end with it: is the file another model's?",
                )
        return tuple(values)

    def only(self, name: str, accepted: object, what: str) -> None:
        """Allow a field only with the one value that is implemented (or absent, or null)."""
        value = self.take(name, accepted)
        if type(value) is not type(accepted) or value != accepted:
            raise self.unsupported(name, f"{what} (it is {short(value)})")

    def ignore(self, names: Iterable[str]) -> None:
        """Take fields that have no say in what the model computes."""
        for name in names:
            self._known.add(name)
            self._left.pop(name, None)

    def child(self, name: str, default: Any = _MISSING) -> Fields:
        """The object under `name`, to be read and finished in its turn."""
        return Fields(self.take(name, default), self.source, self.path(name))

    def finish(self) -> None:
        """Refuse whatever was not taken, naming it and the known field it resembles."""
        if not self._left:
            return
        unknown = sorted(self._left)
        close = difflib.get_close_matches(unknown[0], sorted(self._known), n=1)
        shown = ", ".join(self.path(name) for name in unknown[:5])
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise ConfigError(
            f"{self.source}: unknown field{'s' if len(unknown) > 1 else ''} {shown}{more}",
            hint=f"did you mean {self.path(close[0])}?" if close else "",
        )


def short(value: object) -> str:
    """A value as an error shows it: its JSON-like text, cut when it is long."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**20:
        return "an integer of more than 20 digits"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
