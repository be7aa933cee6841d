"""The small model's tokenizer and chat template, as shipped and as trained anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
import jinja2.sandbox
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

import sfumato
from sfumato.tasks import vocabulary
from sfumato.tasks.registry import TASKS
from sfumato.tasks.vocabulary import SPECIAL, VOCABULARY, corpus, train_tokenizer

SMALL = Path(sfumato.__file__).parent / "small"
TOKENIZER = Tokenizer.from_file(str(SMALL / "tokenizer.json"))
ANYTHING = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


def ids(text: str) -> list[int]:
    """The ids of a text; nothing is added."""
    encoded: list[int] = TOKENIZER.encode(text).ids
    return encoded


def test_size_and_special_ids() -> None:
    assert TOKENIZER.get_vocab_size() == VOCABULARY == 2048
    wanted = (
        "<pad> <eos> <bos> <unk> <|turn> <turn|> <|channel> <channel|> <|think|> <|tool_call> "
        "<tool_call|> <|tool_response> <tool_response|> <|image> <image|> <|image_soft|>"
    )
    assert list(SPECIAL) == wanted.split()
    assert [TOKENIZER.id_to_token(i) for i in range(16)] == wanted.split()
    for index, token in enumerate(SPECIAL):
        assert ids(f"a{token}b")[1:-1] == [index]
    assert sorted(TOKENIZER.get_vocab().values()) == list(range(2048))


def test_digits_and_point_come_next() -> None:
    assert [TOKENIZER.id_to_token(i) for i in range(16, 27)] == list("0123456789.")


@given(ANYTHING)
def test_every_text_comes_back(text: str) -> None:
    if not any(token in text for token in SPECIAL):
        assert TOKENIZER.decode(ids(text), skip_special_tokens=False) == text


@given(ANYTHING, st.sampled_from("0123456789. \n"), ANYTHING)
def test_digits_point_space_and_newline_stand_alone(before: str, one: str, after: str) -> None:
    (alone,) = ids(one)
    assert ids(before + one + after) == [*ids(before), alone, *ids(after)]


def test_no_token_holds_a_digit_with_anything() -> None:
    for token, index in TOKENIZER.get_vocab().items():
        if token not in SPECIAL and len(token) > 1:
            text = TOKENIZER.decode([index])
            assert not set(text) & set("0123456789. \n"), token


@given(st.text("123456789.", min_size=81, max_size=81))
def test_a_grid_is_81_tokens(grid: str) -> None:
    assert ids(grid) == [26 if c == "." else 16 + int(c) for c in grid]
    assert ids(f"Solve this Sudoku: {grid}")[-81:] == ids(grid)


@pytest.mark.parametrize("name", ["Chythede", "Lisbon", "Zürich", "O'Brien", "tea", "Anne-Marie"])
def test_a_word_has_the_same_tokens_wherever_it_stands(name: str) -> None:
    inside = ids(name)
    for before, after in ((" ", " "), ('"', '"'), ("(", ")"), ("\n", "."), ("5", ",")):
        text = ids(f"{before}{name}{after}")
        assert text == [*ids(before), *inside, *ids(after)]


def test_texts_are_short_enough_for_the_canvas_and_the_prompt() -> None:
    for name, source in TASKS.items():
        for split in ("train", "heldout"):
            for index in range(8 if name.startswith("sudoku") else 250):
                example = source.example(11, index, split)
                assert len(ids(example.prompt)) <= 110, example
                assert len(ids(example.answer)) <= (81 if name.startswith("sudoku") else 80), (
                    example
                )


def test_names_split_into_short_pieces() -> None:
    lines = list(corpus(99, examples=0, names=400))[:400]
    pieces = sum(len(ids(name)) for name in lines)
    assert 1.5 < sum(map(len, lines)) / pieces < 3.5


def test_training_is_reproducible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = vocabulary.corpus
    monkeypatch.setattr(vocabulary, "corpus", lambda seed: whole(seed, 3000, 4000))
    for name in ("one", "two"):
        train_tokenizer(tmp_path / name, 4)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "two"]
    small = Tokenizer.from_file(str(tmp_path / "one"))
    assert small.get_vocab_size() == 2048
    assert [small.id_to_token(i) for i in range(16)] == list(SPECIAL)


def test_corpus_is_training_text_only() -> None:
    heldout = {TASKS["dates"].example(1, index, "heldout").answer for index in range(400)}
    assert not heldout & set(corpus(1, examples=600, names=0))


# --- the chat template

THOUGHT = "<|channel>thought\nhm, five\n<channel|>"


def render(messages: list[dict[str, Any]], **options: Any) -> str:
    """The template in a sandbox as checkpoints' templates are run."""

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    source = (SMALL / "chat_template.jinja").read_text(encoding="utf-8")
    options = {"bos_token": "<bos>", "add_generation_prompt": True, **options}
    return environment.from_string(source).render(messages=messages, **options)


def user(text: Any) -> dict[str, Any]:
    """A user's turn."""
    return {"role": "user", "content": text}


def test_one_turn_is_exactly_the_prompt_the_model_is_trained_on() -> None:
    wanted = "<bos><|turn>user\nhi 5<turn|>\n<|turn>model\n"
    assert render([user("hi 5")]) == wanted
    assert render([user("  hi 5\n")]) == wanted
    assert (
        render([user([{"type": "text", "text": "hi "}, {"type": "text", "text": "5"}])]) == wanted
    )
    assert ids(wanted) == [2, 4, *ids("user\nhi 5"), 5, *ids("\n"), 4, *ids("model\n")]
    assert len(ids("user")) == len(ids("model")) == 1


def test_without_generation_prompt() -> None:
    assert render([user("a")], add_generation_prompt=False) == "<bos><|turn>user\na<turn|>\n"


@pytest.mark.parametrize("role", ["system", "developer"])
@pytest.mark.parametrize("thinking", [False, True])
def test_system_turn_and_thinking(role: str, thinking: bool) -> None:
    mark = "<|think|>\n" if thinking else ""
    got = render([{"role": role, "content": "Be short."}, user("a")], enable_thinking=thinking)
    assert (
        got == f"<bos><|turn>system\n{mark}Be short.<turn|>\n<|turn>user\na<turn|>\n<|turn>model\n"
    )
    alone = render([user("a")], enable_thinking=thinking)
    system = "<|turn>system\n<|think|>\n<turn|>\n" if thinking else ""
    assert alone == f"<bos>{system}<|turn>user\na<turn|>\n<|turn>model\n"


@pytest.mark.parametrize(
    "answer",
    ["five", f"{THOUGHT}five", f"{THOUGHT}\nfive ", f"<|channel>thought\n<channel|>{THOUGHT}five"],
)
@pytest.mark.parametrize("role", ["assistant", "model"])
def test_thoughts_of_earlier_turns_are_left_out(answer: str, role: str) -> None:
    got = render([user("a"), {"role": role, "content": answer}, user("b")])
    assert got == (
        "<bos><|turn>user\na<turn|>\n<|turn>model\nfive<turn|>\n<|turn>user\nb<turn|>\n<|turn>model\n"
    )


@pytest.mark.parametrize(
    ("messages", "options", "message"),
    [
        ([user([{"type": "image"}])], {}, "takes text only, not image"),
        ([{"role": "tool", "content": "x"}], {}, "a tool turn is not possible"),
        ([user("a"), {"role": "system", "content": "x"}], {}, "a system turn is not possible"),
        ([user("a")], {"tools": [{"name": "f"}]}, "takes no tool declarations"),
    ],
)
def test_what_the_template_cannot_say_is_refused(
    messages: list[dict[str, Any]], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(jinja2.TemplateError, match=message):
        render(messages, **options)


def test_transformers_reads_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    other = transformers.PreTrainedTokenizerFast.from_pretrained(str(SMALL))
    text = 'Convert "Zürich" 3.5 km\n to m'
    assert other(text)["input_ids"] == ids(text)
    assert (other.pad_token_id, other.eos_token_id, other.bos_token_id, other.unk_token_id) == (
        0,
        1,
        2,
        3,
    )
    for messages in (
        [user("a 5")],
        [user("a"), {"role": "assistant", "content": THOUGHT + "b"}, user("c")],
    ):
        got = other.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=True
        )
        assert got == render(messages, enable_thinking=True)
    assert len(other) == 2048


def test_config_names_every_special_token() -> None:
    config = json.loads((SMALL / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert {v for v in config.values() if isinstance(v, str) and "<" in v} == set(SPECIAL)
    assert config["add_bos_token"] is False
