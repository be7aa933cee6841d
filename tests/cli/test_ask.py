"""`sfumato ask` through a pipe: the answer and nothing else, and every bad input in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import sfumato as library
from sfumato.cli import ask as asking
from sfumato.cli.dialogue import Dialogue, figures_line
from sfumato.cli.options import DecodingOptions, ModelOptions
from sfumato.errors import ContextLengthError, InputError
from sfumato.ops.kernels import instruction_sets
from sfumato.text.chat import Conversation
from tests.cli.checkpoints import FakeStdin, Program


def test_a_pipe_gets_the_answer_alone(sfumato: Program, tiny: Path) -> None:
    done = sfumato("ask", "-m", tiny, "hello", "you", "--seed", "3")
    expected = library.load(tiny).answer("hello you", seed=3)
    assert isinstance(expected, str)
    assert (done.code, done.err) == (0, "")
    assert done.out == expected.strip("\n") + "\n"


def test_the_prompt_may_come_from_stdin(sfumato: Program, tiny: Path) -> None:
    expected = sfumato("ask", "-m", tiny, "héllo").out
    assert sfumato("ask", "-m", tiny, stdin="héllo\n").out == expected
    assert sfumato("ask", "-m", tiny, "-", stdin="héllo").out == expected


@pytest.mark.parametrize("kernels", ["auto", *(n for n, runs in instruction_sets() if runs)])
def test_kernels_answer_too(
    sfumato: Program, monkeypatch: pytest.MonkeyPatch, kernels: str
) -> None:
    monkeypatch.setenv("SFUMATO_KERNELS", kernels)
    done = sfumato("ask", "In digits: forty-two")
    assert (done.code, done.out.strip()) == (0, "42")


def test_json_is_one_object(sfumato: Program, tiny: Path) -> None:
    done = sfumato("ask", "-m", tiny, "hello", "--json", "--max-new-tokens", "5", "--steps", "3")
    report = json.loads(done.out)
    assert done.err == ""
    assert set(report) == {
        "model", "mode", "seed", "text", "thought", "tool_calls", "tokens", "steps", "canvases",
        "tokens_per_forward", "seconds", "finish",
    }  # fmt: skip
    assert report["model"] == str(tiny)
    assert (report["tokens"], report["steps"], report["canvases"]) == (5, 3, 1)
    assert report["finish"] == "length"
    assert report["tokens_per_forward"] == round(5 / 3, 3)


def test_the_environment_names_the_model_and_a_flag_goes_first(
    sfumato: Program, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFUMATO_MODEL", str(tiny))
    assert json.loads(sfumato("ask", "hi", "--json").out)["model"] == str(tiny)
    monkeypatch.setenv("SFUMATO_MODEL", "/nowhere/at/all")
    assert sfumato("ask", "hi", "-m", tiny).code == 0
    assert "/nowhere/at/all" in sfumato.refuses("ask", "hi", code=1)


def test_autoregressive_mode_greedy_and_sampled(sfumato: Program, tiny: Path) -> None:
    common = ("ask", "-m", tiny, "hi", "--json", "--mode", "autoregressive")
    greedy = json.loads(sfumato(*common, "--max-new-tokens", "6").out)
    assert (greedy["mode"], greedy["canvases"], greedy["tokens_per_forward"]) == (
        "autoregressive", 0, 1.0,
    )  # fmt: skip
    again = json.loads(sfumato(*common, "--max-new-tokens", "6", "--seed", "9").out)
    assert again["text"] == greedy["text"]
    sampled = [
        json.loads(sfumato(*common, "--temperature", "5", "--seed", str(seed)).out)["text"]
        for seed in (1, 2)
    ]
    assert sampled[0] != sampled[1]


def test_options_reach_the_decoder(tiny: Path) -> None:
    options = DecodingOptions(
        max_new_tokens=9, steps=7, entropy_bound=0.3, t_min=0.1, t_max=0.9, confidence=0.01,
        stability=2, mode="autoregressive", temperature=0.5,
    )  # fmt: skip
    options.check()
    settings = options.over(library.load(tiny).generation_config)
    assert (settings.max_new_tokens, settings.max_denoising_steps) == (9, 7)
    assert (settings.entropy_bound, settings.t_min, settings.t_max) == (0.3, 0.1, 0.9)
    assert (settings.confidence_threshold, settings.stability_threshold) == (0.01, 2)
    assert (settings.do_sample, settings.temperature) == (True, 0.5)
    unchanged = DecodingOptions().over(library.load(tiny).generation_config)
    assert unchanged == library.load(tiny).generation_config


def test_instructions_and_thinking_change_the_prompt(tiny: Path) -> None:
    dialogue = Dialogue.load(ModelOptions(model=str(tiny)))
    plain = dialogue.prompt(Conversation().say("hi"))
    instructed = dialogue.prompt(Conversation().instruct("Be brief.").say("hi"))
    thinking = dialogue.prompt(Conversation(thinking=True).say("hi"))
    assert dialogue.model.tokenizer.control_id("<|think|>") in thinking
    assert len({tuple(plain), tuple(instructed), tuple(thinking)}) == 3
    dialogue.check_thinking(True)


def test_thinking_without_a_switch_is_refused(sfumato: Program, tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    shutil.copytree(tiny, folder)
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    assert "thinking" in sfumato.refuses("ask", "-m", folder, "hi", "--think", code=2)
    assert sfumato("ask", "-m", folder, "hi").code == 0


def test_images_go_to_a_model_that_sees(
    sfumato: Program, seeing: Path, tiny: Path, tmp_path: Path
) -> None:
    image = pytest.importorskip("PIL.Image")
    path = tmp_path / "red.png"
    image.new("RGB", (64, 48), "red").save(path)
    done = sfumato("ask", "-m", tiny, "hi", "--image", path)
    assert done.code == 2
    assert "takes no images" in done.err
    dialogue = Dialogue.load(ModelOptions(model=str(seeing)))
    picture = dialogue.picture(path)
    assert picture.soft_tokens == 19 * 14  # of 280 allowed
    missing = tmp_path / "missing.png"
    assert str(missing) in sfumato.refuses("ask", "-m", seeing, "x", "--image", missing, code=1)
    (tmp_path / "text.png").write_text("no image")
    sfumato.refuses("ask", "-m", seeing, "x", "--image", tmp_path / "text.png", code=1)


def test_stdin_that_is_a_terminal_or_no_text(
    monkeypatch: pytest.MonkeyPatch, sfumato: Program, tiny: Path
) -> None:
    monkeypatch.setattr("sys.stdin", FakeStdin(b"", terminal=True))
    with pytest.raises(InputError, match="there is no prompt"):
        asking.prompt_text([])
    assert "byte 1" in sfumato.refuses("ask", "-m", tiny, stdin=b"a\xff", code=2)
    monkeypatch.setattr(asking, "MAX_PROMPT_BYTES", 4)
    assert "more than" in sfumato.refuses("ask", "-m", tiny, stdin=b"12345", code=2)


BAD_OPTIONS: list[tuple[list[str], str]] = [
    (["--seed", "-1"], "--seed must be from 0"),
    (["--seed", str(2**63)], "--seed must be from 0"),
    (["--seed", "x"], "invalid value for '--seed'"),
    (["--max-new-tokens", "0"], "max_new_tokens"),
    (["--max-new-tokens", "-1"], "max_new_tokens"),
    (["--max-new-tokens", "1.5"], "invalid value for '--max-new-tokens'"),
    (["--steps", "0"], "max_denoising_steps"),
    (["--entropy-bound", "0"], "entropy_bound must be above 0"),
    (["--entropy-bound", "nan"], "entropy_bound must be a finite number"),
    (["--t-min", "0.9"], "t_max must be above t_min"),
    (["--confidence", "inf"], "confidence_threshold"),
    (["--stability", "-1"], "stability_threshold"),
    (["--temperature", "0.5"], "--temperature is for --mode autoregressive"),
    (["--mode", "autoregressive", "--entropy-bound", "1"], "--entropy-bound is for --mode diff"),
    (["--mode", "sideways"], "sideways"),
    (["--pace", "-1"], "--pace must be from 0"),
    (["--pace", "5"], "--pace is for the live canvas, and a pipe gets none"),
    (["--pace", "5", "--no-live"], "--pace is for the live canvas"),
    (["--pace", "5", "--json"], "leave --json out"),
    (["--pace", "5", "--mode", "autoregressive"], "--pace is for the live canvas"),
    (["a name's byte \udcff"], "the prompt is no UTF-8 text: its character 18"),
    (["--system", "\udcff"], "is no UTF-8 text"),
    (["--frobnicate"], "--frobnicate"),
    (["--device", "nowhere"], "nowhere"),
    (["--dtype", "int4"], "dtype must be one of float32, bfloat16, float16"),
    (["--system"], "--system"),
]


@pytest.mark.parametrize(("options", "said"), BAD_OPTIONS)
def test_bad_options_are_usage_errors(
    sfumato: Program, tiny: Path, options: list[str], said: str
) -> None:
    assert said in sfumato.refuses("ask", "-m", tiny, "hi", *options, code=2)


@pytest.mark.parametrize("prompt", ["", "   ", "\n\t "])
def test_an_empty_prompt(sfumato: Program, tiny: Path, prompt: str) -> None:
    assert "the prompt is empty" in sfumato.refuses("ask", "-m", tiny, prompt, code=2)
    assert "the prompt is empty" in sfumato.refuses("ask", "-m", tiny, stdin=prompt, code=2)


def test_a_prompt_longer_than_the_context(sfumato: Program, tiny: Path) -> None:
    said = sfumato.refuses("ask", "-m", tiny, stdin="1 2 " * 5000, code=2)
    assert "maximum context length is 4096 tokens" in said


def test_a_prompt_far_too_long_is_refused_by_its_size(sfumato: Program, tiny: Path) -> None:
    far = "1 2 " * 500_000
    said = sfumato.refuses("ask", "-m", tiny, stdin=far, code=2)
    assert "tokens or more, but this model's maximum context length is 4096 tokens" in said
    assert "tokens or more" in sfumato.refuses("chat", "-m", tiny, stdin=far, code=2)
    with pytest.raises(ContextLengthError, match="tokens or more"):
        library.load(tiny).answer(["hi", far])


def damaged(tiny: Path, folder: Path, file: str, change: Any) -> Path:
    shutil.copytree(tiny, folder)
    path = folder / file
    data = path.read_bytes()
    changed = change(data)
    if changed is None:
        path.unlink()
    else:
        path.write_bytes(changed)
    return folder


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("model.safetensors", lambda data: data[: len(data) // 2]),
        ("model.safetensors", lambda data: b"\xff" * 64 + data[64:]),
        ("model.safetensors", lambda _data: b""),
        ("model.safetensors", lambda _data: None),
        ("config.json", lambda data: data[:-20]),
        ("config.json", lambda _data: b"[]"),
        ("config.json", lambda data: data.replace(b'"hidden_size": 32', b'"hidden_size": 64')),
        ("config.json", lambda data: data.replace(b"{", b'{"auto_map": {"a": "b"},', 1)),
        ("config.json", lambda _data: None),
        ("generation_config.json", lambda _data: b'{"t_max": "hot"}'),
        ("tokenizer.json", lambda data: data[:1000]),
        ("tokenizer.json", lambda _data: None),
        ("chat_template.jinja", lambda _data: b"{% for x in %}"),
        ("chat_template.jinja", lambda _data: b"{{ ''.__class__.__mro__ }}"),
        ("chat_template.jinja", lambda _data: None),
    ],
)
def test_damaged_and_hostile_checkpoints(
    sfumato: Program, tiny: Path, tmp_path: Path, file: str, change: Any
) -> None:
    folder = damaged(tiny, tmp_path / "damaged", file, change)
    sfumato.refuses("ask", "-m", folder, "hi", code=1)


def test_models_that_are_not_there(sfumato: Program, tmp_path: Path, hub_cache: Path) -> None:
    missing = tmp_path / "nothing"
    for name in (missing, "~no-such-user/x"):
        assert "there is no such folder" in sfumato.refuses("ask", "-m", name, "hi", code=1)
    assert "sfumato pull" in sfumato.refuses("ask", "-m", "some/model", "hi", code=1)
    assert "name is empty" in sfumato.refuses("ask", "-m", "", "hi", code=2)
    (tmp_path / "empty").mkdir()
    assert "config.json" in sfumato.refuses("ask", "-m", tmp_path / "empty", "hi", code=1)


def test_unknown_variables_are_named(
    sfumato: Program, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFUMATO_MODLE", "x")
    assert "SFUMATO_MODLE" in sfumato.refuses("ask", "-m", tiny, "hi", code=2)


def test_figures_are_said_in_words(tiny: Path) -> None:
    dialogue = Dialogue.load(ModelOptions(model=str(tiny)))
    reply = dialogue.reply(Conversation().say("hi"), DecodingOptions(max_new_tokens=20))
    line = figures_line(reply)
    assert "steps, 2 canvases, " in line
    assert "tokens per forward, " in line
