"""The text tasks: right answers by other means, values held out, purity, breadth, lengths."""

from __future__ import annotations

import ast
import datetime
import itertools
import json
import random
import re
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfumato.tasks import dates, extraction, numbers, tools, units, words
from sfumato.tasks.base import Example, Split, exact, held_out, vary
from sfumato.tasks.copying import Copying
from sfumato.tasks.extraction import BEFORE, SCHEMAS, Extraction, articles, compact
from sfumato.tasks.registry import TASKS, task
from sfumato.tasks.tools import TOOLS, WEIGHTS, ToolCalls

TEXT = ("dates", "numbers", "units", "json", "tools", "copy")
SPLITS: tuple[Split, Split] = ("train", "heldout")


def examples(name: str, split: Split, n: int = 400, seed: int = 1) -> list[Example]:
    """The first `n` examples."""
    return [TASKS[name].example(seed, index, split) for index in range(n)]


# --- what holds for all of them


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", TEXT)
def test_an_example_is_a_pure_function_of_seed_index_and_split(name: str, split: Split) -> None:
    source = task(name)
    once = examples(name, split, 40)
    backwards = [source.example(1, index, split) for index in reversed(range(40))]
    assert backwards[::-1] == once
    assert [source.example(2, index, split) for index in range(40)] != once


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", TEXT)
def test_texts_are_short_clean_and_checked_exactly(name: str, split: Split) -> None:
    source = task(name)
    for example in examples(name, split):
        assert example.task == source.name == name
        for text in (example.prompt, example.answer):
            assert text
            assert text == text.strip()
            assert "  " not in text
            assert "<" not in text or "@" in text, "nothing that looks like a control token"
        assert "{" not in example.prompt or name == "json"
        assert len(example.prompt) <= 260
        assert len(example.answer) <= 200
        assert source.check(example, f" {example.answer}\n")
        assert not source.check(example, example.answer + "x")
        assert not source.check(example, "")


@pytest.mark.parametrize("name", TEXT)
def test_prompts_do_not_repeat_much_and_never_cross_the_splits(name: str) -> None:
    train = {e.prompt for e in examples(name, "train", 2000)}
    heldout = {e.prompt for e in examples(name, "heldout", 2000)}
    assert not train & heldout
    assert len(train) > 1300
    assert len(heldout) > 1200


def test_a_tenth_of_values_is_held_out() -> None:
    share = sum(held_out("word", i) for i in range(20_000)) / 20_000
    assert 0.09 < share < 0.11
    assert held_out("word", "tea") == held_out("word", "tea")


def test_exact_ignores_only_the_white_space_around() -> None:
    example = Example("t", "p", "a b")
    assert exact(example, "a b \n")
    assert not exact(example, "a  b")
    assert not exact(example, "A b")


@given(st.integers(), st.text(min_size=1))
def test_vary_changes_the_first_letter_only(seed: int, text: str) -> None:
    varied = vary(random.Random(seed), text)
    assert varied.lower() == text.lower() or varied[1:].endswith(text[1:])


# --- dates


def read_date(prompt: str) -> set[datetime.date]:
    """Every reading of the one date in a prompt, by regular expressions of the test's own."""
    text = prompt.lower().replace("8601", "")
    names = "jan feb mar apr may jun jul aug sep oct nov dec".split()
    ordinal = [
        number.replace(" ", "-")
        for number in "first second third fourth fifth sixth seventh eighth ninth tenth eleventh "
        "twelfth thirteenth fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth "
        "twentieth".split()
    ]
    ordinal += [f"twenty-{n}" for n in ordinal[:9]] + ["thirtieth", "thirty-first"]
    year = int(re.findall(r"\b(?:19|20)\d\d\b", text)[0])
    rest = re.sub(rf"\b{year}\b", " ", text, count=1)
    month = re.search(rf"\b({'|'.join(names)})[a-z]*", re.sub(r"\b(mon|sat|sun)[a-z]*", "", rest))
    digits = [int(d) for d in re.findall(r"\d+", rest)]
    if month:
        number = names.index(month[1]) + 1
        if digits:
            return {datetime.date(year, number, digits[0])}
        spoken = max((o for o in ordinal if re.search(rf"(?<![-\w]){o}\b", rest)), key=len)
        return {datetime.date(year, number, ordinal.index(spoken) + 1)}
    first, second = digits
    if "(us)" in text or re.search(r"\d{4}[/.]", text):
        first, second = second, first
    return {datetime.date(year, second, first)}


@pytest.mark.parametrize("split", SPLITS)
def test_dates_read_back_by_other_means(split: Split) -> None:
    for example in examples("dates", split, 1500):
        assert {datetime.date.fromisoformat(example.answer)} == read_date(example.prompt), example


def test_days_are_held_out_as_days_and_weekdays_are_right() -> None:
    for split in SPLITS:
        for example in examples("dates", split, 800):
            day = datetime.date.fromisoformat(example.answer)
            assert 1900 <= day.year <= 2099
            assert held_out("date", day) == (split == "heldout")
            named = [d for d in dates.WEEKDAYS if d.lower() in example.prompt.lower()]
            assert named in ([], [dates.WEEKDAYS[day.weekday()]])


def test_every_date_format_is_unambiguous() -> None:
    assert len(dates.FORMATS) >= 30
    assert len(dates.WORDINGS) >= 20
    for pattern in dates.FORMATS:
        if "/{y}" in pattern:
            assert pattern.endswith(("(US)", "(UK)"))


@pytest.mark.parametrize(
    ("day", "text"), [(1, "1st"), (2, "2nd"), (3, "3rd"), (11, "11th"), (12, "12th"), (13, "13th")]
)
def test_ordinals(day: int, text: str) -> None:
    assert dates._th(day) == text
    assert dates._th(day + 20 if day < 4 else day) == (f"2{text}" if day < 4 else text)


# --- numbers


def read_words(text: str) -> int:
    """The number that English words say: a reader of its own, from left to right."""
    values = dict(
        zip("zero one two three four five six seven eight nine".split(), range(10), strict=True)
    )
    teens = (
        "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
    )
    values |= dict(zip(teens, range(10, 20), strict=True))
    tens = "twenty thirty forty fifty sixty seventy eighty ninety".split()
    values |= dict(zip(tens, range(20, 100, 10), strict=True))
    total = group = 0
    for token in text.lower().replace("-", " ").replace(",", " ").split():
        if token == "thousand":
            total, group = group * 1000, 0
        elif token == "hundred":
            group *= 100
        elif token != "and":
            group += values[token]
    return total + group


@given(st.integers(0, 999_999), st.booleans())
def test_words_of_a_number_read_back(n: int, joined: bool) -> None:
    assert read_words(numbers.in_words(n, joined)) == n


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "zero"),
        (15, "fifteen"),
        (40, "forty"),
        (100, "one hundred"),
        (101, "one hundred and one"),
        (1000, "one thousand"),
        (1006, "one thousand and six"),
        (1100, "one thousand one hundred"),
        (417006, "four hundred and seventeen thousand and six"),
        (999999, "nine hundred and ninety-nine thousand nine hundred and ninety-nine"),
    ],
)
def test_words_of_known_numbers(n: int, text: str) -> None:
    assert numbers.in_words(n) == text


def spoken_part(prompt: str) -> str:
    """The number words of a prompt."""
    tens = "(?:twen|thir|for|fif|six|seven|eigh|nine)ty"
    small = "zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|[a-z]+teen"
    pattern = rf"\b(?:{tens}|{small})\b(?:[-, ]+(?:{tens}|{small}|hundred|thousand|and)\b)*"
    return max(re.findall(pattern, prompt.lower()), key=len)


@pytest.mark.parametrize("split", SPLITS)
def test_numbers_are_right_both_ways_and_held_out(split: Split) -> None:
    ways = {"digits": 0, "words": 0}
    for example in examples("numbers", split, 1500):
        if example.answer.isdigit():
            ways["digits"] += 1
            n = int(example.answer)
            assert read_words(spoken_part(example.prompt)) == n
            assert str(n) == example.answer
        else:
            ways["words"] += 1
            n = int("".join(re.findall(r"\d", example.prompt)))
            assert example.answer == numbers.in_words(n)
        assert (n >= 100 and held_out("number", n)) == (split == "heldout")
    assert min(ways.values()) > 600


def test_numbers_have_many_wordings_and_lengths() -> None:
    assert min(len(set(numbers.TO_DIGITS)), len(set(numbers.TO_WORDS))) >= 15
    lengths = {len(e.answer) for e in examples("numbers", "train", 800) if e.answer.isdigit()}
    assert lengths == set(range(1, 7))


# --- units

METRES = {"km": Fraction(1000), "m": Fraction(1), "cm": Fraction(1, 100), "mm": Fraction(1, 1000)}
SECONDS = {"s": 1, "min": 60, "h": 3600, "days": 86400, "weeks": 604800}
SIZES = {
    **METRES,
    **{k: Fraction(v) for k, v in SECONDS.items()},
    "kg": Fraction(1000),
    "g": Fraction(1),
    "l": Fraction(1000),
    "ml": Fraction(1),
    "dozen": Fraction(12),
    "items": Fraction(1),
    "in": Fraction(254, 10000),
}


@pytest.mark.parametrize("split", SPLITS)
def test_conversions_are_exact_by_fractions(split: Split) -> None:
    seen = set()
    for example in examples("units", split, 2000):
        source, target = str(example.detail["pair"]).split("-")
        seen.add((source, target))
        value = re.findall(r"\d+(?:\.\d+)?", example.prompt)
        assert len(value) == 1
        answer, unit = example.answer.split(" ")
        conversion = next(c for c in units.CONVERSIONS if (c.source, c.target) == (source, target))
        assert Fraction(answer) == Fraction(value[0]) * SIZES[source] / SIZES[target], example
        assert unit.rstrip("s") == target.rstrip("s")
        assert (unit in ("day", "week", "item")) == (
            answer == "1" and target in ("days", "weeks", "items")
        )
        assert not re.search(r"\.\d*0$", answer)
        if conversion.most:  # a table: a tenth of its sentences, whatever their letters' case
            sentence = example.prompt.lower().rstrip(".?")
            kept = held_out("unit sentence", sentence)
        else:
            few = Fraction(value[0]) <= 12
            kept = not few and held_out("unit", f"{value[0]} {source} {target}")
        assert kept == (split == "heldout")
    assert seen == {(c.source, c.target) for c in units.CONVERSIONS}


def test_tables_come_up_more_often_in_training() -> None:
    tables = {f"{c.source}-{c.target}" for c in units.CONVERSIONS if c.most}
    shares: dict[str, float] = {}
    splits: tuple[Split, ...] = ("train", "heldout")
    for split in splits:
        pairs = [task("units").example(5, i, split).detail["pair"] for i in range(1500)]
        shares[split] = sum(pair in tables for pair in pairs) / len(pairs)
    weight = sum(c.weight for c in units.CONVERSIONS if c.most)  # against 12 powers of ten
    assert shares["heldout"] == pytest.approx(weight / (weight + 12), abs=0.04)
    assert shares["train"] == pytest.approx(2 * weight / (2 * weight + 12), abs=0.04)


def test_unit_wordings_name_value_and_target() -> None:
    assert len(set(units.WORDINGS)) >= 20
    assert all("{v}" in w and "{t}" in w for w in units.WORDINGS)
    spellings = [s for u in units.UNITS.values() for s in {u.short, u.one, u.many, *u.other}]
    assert len(spellings) == len(set(spellings)), "one spelling, one unit"


# --- extraction and tools


def values_of(example: Example) -> list[str]:
    """The strings of a JSON answer, arguments included."""
    data = json.loads(example.answer)
    data = data.get("arguments", data)
    return [str(v) for v in data.values()]


@pytest.mark.parametrize("split", SPLITS)
def test_extracted_values_stand_in_the_prompt(split: Split) -> None:
    for example in examples("json", split, 1200):
        data = json.loads(example.answer)
        assert compact(data) == example.answer
        assert data
        for key, value in data.items():
            assert key in example.prompt
            signs = {"USD": "$", "EUR": "€", "GBP": "£", "JPY": "¥"}
            assert str(value) in example.prompt or signs.get(str(value), "?") in example.prompt, (
                example
            )
        assert set(data) <= set(str(example.detail["schema"]).split(","))


def test_keys_come_in_the_order_asked_for() -> None:
    orders = set()
    for example in examples("json", "train", 1500):
        keys = list(json.loads(example.answer))
        listed = re.search(
            r"(?:^|[^a-z])"
            + r"(?:\"?, \"?| and |\",\")".join(map(re.escape, keys))
            + "(?:[^a-z]|$)",
            example.prompt,
        )
        assert listed, example
        orders.add(tuple(keys))
    assert len(orders) > 2 * len(SCHEMAS), "reordered and shortened lists occur"


def test_schemas_and_tools_have_ten_sentences_and_all_their_keys() -> None:
    assert len(SCHEMAS) >= 12
    for schema in SCHEMAS:
        assert len(set(schema.sentences)) >= 10
        for sentence in schema.sentences:
            named = re.findall(r"{(\w+)}", sentence)
            assert sorted(named) == sorted(schema.makers), sentence
    assert len(BEFORE) >= 12
    assert len(TOOLS) == len(WEIGHTS)
    for tool in TOOLS:
        assert len(set(tool.sentences)) >= 10
        for sentence in tool.sentences:
            named = re.findall(r"{(\w+)}", sentence)
            assert len(named) == len(set(named))
            assert set(named) <= set(tool.makers)
            assert next(iter(tool.makers)) in named


@pytest.mark.parametrize("split", SPLITS)
def test_tool_calls_carry_what_the_sentence_says(split: Split) -> None:
    signatures = {tool.name: list(tool.makers) for tool in TOOLS}
    used = set()
    for example in examples("tools", split, 1500):
        data = json.loads(example.answer)
        assert list(data) == ["tool", "arguments"]
        assert data["tool"] == example.detail["tool"]
        used.add(data["tool"])
        keys = list(data["arguments"])
        assert keys
        assert keys == [k for k in signatures[data["tool"]] if k in keys]
        for value in data["arguments"].values():
            assert str(value).lower() in example.prompt.lower(), example
    assert used == set(signatures)


# Words that come from short closed lists, so that no split can keep them out.
CLOSED = set(
    "new san port saint el fort bad north labs inc ltd group systems foods bank motors media works "
    "am pm com org net de io am i on off my is in at the to by and for more".split()
)


@pytest.mark.parametrize("name", ["json", "tools", "copy"])
def test_held_out_words_never_occur_in_training(name: str) -> None:
    """Words made up for names, places and phrases; template words and closed lists set aside."""

    def strange(split: Split) -> set[str]:
        found: set[str] = set()
        for example in examples(name, split, 1500, seed=5):
            texts = [example.answer] if name == "copy" else values_of(example)
            for text in texts:
                found |= set(re.findall(r"[^\W\d_](?:[^\W\d_]|')+", text.lower()))
        return found

    train = {w for w in strange("train") if held_out("word", w)}
    heldout = {w for w in strange("heldout") if held_out("word", w)}
    assert len(heldout) > 300
    assert len(train & heldout) <= 25, sorted(train & heldout)
    assert all(w in closed_words() for w in train & heldout)


def closed_words() -> set[str]:
    """Month names, jobs, colours and the like: drawn from lists, the same in both splits."""
    source = set(CLOSED)
    for module in (extraction, tools, dates):
        tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                source |= set(re.findall(r"[^\W\d_]{2,}", node.value.lower()))
    return source


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("maker", ["word", "phrase", "title", "person", "company"])
def test_word_makers_keep_to_the_split(maker: str, split: Split) -> None:
    rng = random.Random(9)
    forms = {"labs", "inc", "ltd", "group", "systems", "foods", "bank", "motors", "media", "works"}
    for _ in range(300):
        text = getattr(words, maker)(rng, split)
        for part in text.replace("-", " ").lower().split():
            if maker != "company" or part not in forms:
                assert held_out("word", part) == (split == "heldout"), text


def test_made_up_words_are_pronounceable_and_many() -> None:
    rng = random.Random(0)
    made = [words.syllables(rng) for _ in range(3000)]
    assert len(set(made)) > 2200
    assert all(2 <= len(w) <= 11 and w.isalpha() and w.islower() for w in made)
    pairs = {a + b for w in made for a, b in itertools.pairwise(w)}
    assert len(pairs) > 350, "most pairs of letters are met"


@pytest.mark.parametrize(
    ("given_", "wanted"),
    [
        ("a engineer", "an engineer"),
        ("A item", "An item"),
        ("a nurse", "a nurse"),
        ("data in", "data in"),
    ],
)
def test_articles(given_: str, wanted: str) -> None:
    assert articles(given_) == wanted


def test_copying_copies() -> None:
    kinds = dict.fromkeys(("same", "quoted", "list", "spelled", "joined"), 0)
    for example in examples("copy", "train", 1000):
        answer = example.answer
        if example.prompt.endswith(answer):
            kinds["same"] += 1
        elif answer.startswith('"'):
            kinds["quoted"] += 1
            assert answer[1:-1] in example.prompt
        elif answer.startswith("["):
            kinds["list"] += 1
            assert ", ".join(json.loads(answer)) in example.prompt
        elif answer.replace(" ", "") in example.prompt:
            kinds["spelled"] += 1
        else:
            kinds["joined"] += 1
            assert " ".join(answer) in example.prompt
    assert min(kinds.values()) > 40, kinds


def test_tasks_are_frozen() -> None:
    for source in (Copying(), Extraction(), ToolCalls()):
        with pytest.raises(AttributeError):
            source.name = "other"  # type: ignore[misc]
