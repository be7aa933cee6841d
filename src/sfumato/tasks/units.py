"""Unit conversion with exact decimal answers."""

from __future__ import annotations

import random
from dataclasses import dataclass
from decimal import Decimal

from sfumato.tasks.base import Example, Split, exact, generator, held_out, vary


@dataclass(frozen=True)
class Unit:
    """How a unit is written: short (as answered), one of it, several of it, other spellings."""

    short: str
    one: str
    many: str
    other: tuple[str, ...] = ()


@dataclass(frozen=True)
class Conversion:
    """`source` x `factor` = `target`. Values are k x `grain`, k in 1..`most`; 0: any decimal."""

    source: str
    target: str
    factor: Decimal
    most: int = 0
    grain: Decimal = Decimal(1)
    weight: float = 1.0


UNITS = {
    u.short: u
    for u in (
        Unit("km", "kilometer", "kilometers", ("kilometres", "KM")),
        Unit("m", "meter", "meters", ("metres",)),
        Unit("cm", "centimeter", "centimeters", ("centimetres",)),
        Unit("mm", "millimeter", "millimeters", ("millimetres",)),
        Unit("kg", "kilogram", "kilograms", ("kilos",)),
        Unit("g", "gram", "grams", ("grammes",)),
        Unit("h", "hour", "hours", ("hrs",)),
        Unit("min", "minute", "minutes", ("mins",)),
        Unit("s", "second", "seconds", ("sec", "secs")),
        Unit("days", "day", "days"),
        Unit("weeks", "week", "weeks"),
        Unit("l", "liter", "liters", ("litres", "L")),
        Unit("ml", "milliliter", "milliliters", ("millilitres", "mL")),
        Unit("dozen", "dozen", "dozen", ("dozens",)),
        Unit("items", "item", "items", ("pieces",)),
        Unit("in", "inch", "inches"),
    )
}
_D = Decimal
CONVERSIONS = (
    *(
        Conversion(a, b, _D(f))
        for a, b, f in (("km", "m", 1000), ("m", "cm", 100), ("cm", "mm", 10))
    ),
    *(
        Conversion(a, b, _D(f))
        for a, b, f in (("kg", "g", 1000), ("l", "ml", 1000), ("m", "mm", 1000))
    ),
    *(
        Conversion(b, a, _D(f))
        for a, b, f in (("km", "m", "0.001"), ("m", "cm", "0.01"), ("cm", "mm", "0.1"))
    ),
    *(
        Conversion(b, a, _D(f))
        for a, b, f in (("kg", "g", "0.001"), ("l", "ml", "0.001"), ("m", "mm", "0.001"))
    ),
    Conversion("h", "min", _D(60), 100, _D("0.5")),
    Conversion("min", "h", _D(1) / _D(60), 160, _D(15)),
    Conversion("min", "s", _D(60), 150),
    Conversion("s", "min", _D(1) / _D(60), 120, _D(30)),
    Conversion("h", "s", _D(3600), 24, weight=0.4),
    Conversion("days", "h", _D(24), 60),
    Conversion("h", "days", _D(1) / _D(24), 60, _D(24), 0.7),
    Conversion("weeks", "days", _D(7), 104),
    Conversion("days", "weeks", _D(1) / _D(7), 104, _D(7)),
    Conversion("dozen", "items", _D(12), 99),
    Conversion("items", "dozen", _D(1) / _D(12), 99, _D(12)),
    Conversion("in", "cm", _D("2.54"), 99, weight=1.4),
)
TABLES_IN_TRAINING = 2.0  # what is learnt by heart comes up twice as often as in the held-out set
WORDINGS = (
    "Convert {v} to {t}",
    "Convert {v} to {t}.",
    "convert {v} into {t}",
    "{v} in {t}",
    "{v} to {t}",
    "How many {t} are in {v}?",
    "How many {t} is {v}?",
    "What is {v} in {t}?",
    "{v} = ? {t}",
    "How many {t} are there in {v}?",
    "Express {v} in {t}.",
    "{v} -> {t}",
    "Change {v} to {t}",
    "Give {v} in {t}.",
    "{v} as {t}",
    "{v} in {t}?",
    "Unit conversion: {v} to {t}",
    "What's {v} in {t}?",
    "Please convert {v} to {t}.",
    "Write {v} in {t}.",
    "{v} equals how many {t}?",
    "{v} is how many {t}?",
    "How much is {v} in {t}?",
    "Convert: {v} to {t}",
    "{v} into {t}",
)


def plain(value: Decimal) -> str:
    """Digits without exponent and without zeros after the point: 3.50 -> 3.5, 1E+3 -> 1000."""
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def answer_of(value: Decimal, unit: str) -> str:
    """The value with the unit's short name; a single day, week or item is singular."""
    single = value == 1 and UNITS[unit].many == unit
    return f"{plain(value)} {UNITS[unit].one if single else unit}"


def _decimal(rng: random.Random) -> Decimal:
    digits = rng.randrange(1, 10 ** rng.choice((1, 2, 2, 3, 3, 4)))
    if rng.random() < 0.2:
        digits *= 10 ** rng.randint(1, 3)
    return Decimal(digits).scaleb(-rng.choice((0, 0, 0, 1, 1, 2)))


def _value(rng: random.Random, conversion: Conversion) -> Decimal:
    if conversion.most:
        return rng.randint(1, conversion.most) * conversion.grain
    value = _decimal(rng)
    return value * 10 ** rng.randint(0, 2) if conversion.factor < 1 else value


def _kept_out(conversion: Conversion, value: Decimal, sentence: str) -> bool:
    """Whether an example is held out.

    Of conversions by powers of ten, a tenth of (pair, value) is, but none of the first dozen
    values. The others are tables of at most 160 values, which are learnt by heart: of them a tenth
    of the sentences is held out, whatever their letters' case and their last mark.
    """
    if conversion.most:
        return held_out("unit sentence", sentence.lower().rstrip(".?"))
    key = f"{plain(value)} {conversion.source} {conversion.target}"
    return value > 12 and held_out("unit", key)


def _spelled(rng: random.Random, unit: str, value: Decimal | None) -> str:
    kind = UNITS[unit]
    if value == 1:
        return rng.choice((kind.one, kind.short if kind.short != kind.many else kind.one))
    return rng.choice((kind.short, kind.short, kind.many, kind.many, *kind.other[:1], *kind.other))


def _sentence(rng: random.Random, conversion: Conversion, value: Decimal) -> str:
    source = _spelled(rng, conversion.source, value)
    glue = "" if source == conversion.source and len(source) < 3 and rng.random() < 0.2 else " "
    return rng.choice(WORDINGS).format(
        v=f"{plain(value)}{glue}{source}", t=_spelled(rng, conversion.target, None)
    )


@dataclass(frozen=True)
class Conversions:
    """`3.5 km in meters` -> `3500 m`."""

    name: str = "units"

    def example(self, seed: int, index: int, split: Split = "train") -> Example:
        """A conversion, its value and its wording."""
        rng = generator(self.name, seed, index, split)
        tables = TABLES_IN_TRAINING if split == "train" else 1.0
        weights = [c.weight * (tables if c.most else 1.0) for c in CONVERSIONS]
        conversion = rng.choices(CONVERSIONS, weights)[0]
        while True:
            value = _value(rng, conversion)
            prompt = _sentence(rng, conversion, value)
            if _kept_out(conversion, value, prompt) == (split == "heldout"):
                break
        result = (value * conversion.factor).quantize(Decimal("0.000001"))
        answer = answer_of(Decimal(plain(result)), conversion.target)
        pair = f"{conversion.source}-{conversion.target}"
        return Example(self.name, vary(rng, prompt), answer, {"pair": pair})

    def check(self, example: Example, answer_text: str) -> bool:
        """Exact match."""
        return exact(example, answer_text)
