"""Dates as people write them, to ISO 8601. Every tenth day of 1900-2099 is held out."""

from __future__ import annotations

import datetime
import random
from dataclasses import dataclass

from sfumato.tasks.base import Example, Split, draw, exact, generator, listed, vary

MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
SHORT = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_ORDINALS = listed(
    """
    first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth
    fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth twentieth twenty-first
    twenty-second twenty-third twenty-fourth twenty-fifth twenty-sixth twenty-seventh twenty-eighth
    twenty-ninth thirtieth thirty-first
    """
)
FORMATS = (
    "{M} {d}, {y}",
    "{M} {th}, {y}",
    "{m} {d}, {y}",
    "{m}. {d}, {y}",
    "{M} {d} {y}",
    "{m} {d} {y}",
    "{d} {M} {y}",
    "{d} {m} {y}",
    "{dd} {m} {y}",
    "{dd} {M} {y}",
    "{d} {M}, {y}",
    "{d}. {M} {y}",
    "{th} {M} {y}",
    "{th} of {M} {y}",
    "{th} of {M}, {y}",
    "the {th} of {M} {y}",
    "the {th} of {M}, {y}",
    "{M} the {th}, {y}",
    "{M} the {th} {y}",
    "{m} {th}, {y}",
    "{th} {m} {y}",
    "{dd}-{m}-{y}",
    "the {ordinal} of {M} {y}",
    "the {ordinal} of {M}, {y}",
    "{M} the {ordinal}, {y}",
    "{ordinal} of {M} {y}",
    "{dd}.{mm}.{y}",
    "{d}.{n}.{y}",
    "{y}/{mm}/{dd}",
    "{y}.{mm}.{dd}",
    "{y} {M} {d}",
    "{y}, {M} {d}",
    "{n}/{d}/{y} (US)",
    "{mm}/{dd}/{y} (US)",
    "{d}/{n}/{y} (UK)",
    "{dd}/{mm}/{y} (UK)",
    "{d}-{m}-{y}",
    "{W}, {M} {d}, {y}",
    "{W}, {d} {M} {y}",
    "{W} {d} {M} {y}",
    "{w}, {dd} {m} {y}",
    "{W}, {M} {th}, {y}",
    "{W} the {th} of {M} {y}",
    "{w} {m} {d} {y}",
    "day {d} of {M} {y}",
    "{M} {d} in {y}",
    "{m} {dd}, {y}",
)
WORDINGS = (
    "{}",
    "{}",
    "{}",
    "Convert to ISO: {}",
    "date: {}",
    "Date: {}",
    "ISO date: {}",
    "{} in ISO format",
    "Convert {} to ISO.",
    "Convert {} to ISO 8601.",
    "Write {} as an ISO date.",
    "ISO: {}",
    "What is {} in ISO format?",
    "What is the ISO date for {}?",
    "{} as ISO",
    "{} to ISO",
    "Give the ISO date: {}",
    "Convert this date to ISO: {}",
    "Format as YYYY-MM-DD: {}",
    "{} -> ISO",
    "Normalize the date {}",
    "Rewrite {} as YYYY-MM-DD.",
    "Date to ISO: {}",
    "Please convert {} to ISO format.",
    "Convert the date {} to ISO format",
    "{} as YYYY-MM-DD",
    "Convert to YYYY-MM-DD: {}",
    "Which ISO date is {}?",
    "Turn {} into an ISO date.",
)


def _th(day: int) -> str:
    if 10 < day < 14:
        return f"{day}th"
    return f"{day}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(day % 10, 'th') }"


def written(rng: random.Random, day: datetime.date) -> str:
    """The day in one of the formats; slashes with the year last always say (US) or (UK)."""
    n, d = day.month, day.day
    text = rng.choice(FORMATS).format(
        M=MONTHS[n - 1],
        m=SHORT[n - 1],
        n=n,
        mm=f"{n:02}",
        d=d,
        dd=f"{d:02}",
        y=day.year,
        th=_th(d),
        ordinal=_ORDINALS[d - 1],
        W=WEEKDAYS[day.weekday()],
        w=WEEKDAYS[day.weekday()][:3],
    )
    roll = rng.random()
    if "(" not in text:
        text = text.lower() if roll < 0.08 else text.upper() if roll < 0.11 else text
    return text


def random_day(
    rng: random.Random, split: Split, first: int = 1900, last: int = 2099
) -> datetime.date:
    """A day of the split, uniform over the years `first` to `last`."""
    low, high = datetime.date(first, 1, 1).toordinal(), datetime.date(last, 12, 31).toordinal()
    return draw("date", split, lambda: datetime.date.fromordinal(rng.randint(low, high)))


@dataclass(frozen=True)
class Dates:
    """A date in words or numbers -> `2021-03-05`."""

    name: str = "dates"

    def example(self, seed: int, index: int, split: Split = "train") -> Example:
        """Half the days fall in 1950-2035, where most of people's dates are."""
        rng = generator(self.name, seed, index, split)
        years = (1950, 2035) if rng.random() < 0.5 else (1900, 2099)
        day = random_day(rng, split, *years)
        prompt = vary(rng, rng.choice(WORDINGS).format(written(rng, day)))
        return Example(self.name, prompt, day.isoformat())

    def check(self, example: Example, answer_text: str) -> bool:
        """Exact match."""
        return exact(example, answer_text)
