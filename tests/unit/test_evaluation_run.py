"""Examples in, outcomes out: sets, batches, seeds, checks, failures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfumato.api import Model
from sfumato.config.generation import GenerationConfig
from sfumato.errors import EvaluationError, InputError
from sfumato.evaluation.run import (
    MAX_FAILURES,
    Progress,
    evaluate,
    render,
    row_seed,
)
from sfumato.evaluation.task_sets import TaskSet, is_solved, read_task_sets, task_sets
from sfumato.tasks.base import Example
from sfumato.tasks.heldout import heldout, write_heldout
from tests.unit.evaluation_models import Oracle, tiny_model

NUMBERS = [Example("double", f"twice {n}", str(2 * n), {"holes": n % 3}) for n in range(50)]


def doubles(prompt: str) -> str:
    """Right below thirty."""
    n = int(prompt.split()[1])
    return f" {2 * n}\n" if n < 30 else "many"


def test_counts_what_is_right() -> None:
    report = evaluate(Oracle(doubles).model, NUMBERS, batch_size=7)
    (result,) = report.results
    assert (result.task, result.examples, result.solved) == ("double", 50, 30)
    assert result.accuracy == 0.6
    steps = [len(one.prompt) % 7 + 1 for one in NUMBERS]
    assert result.steps_per_canvas == pytest.approx(sum(steps) / 50)
    assert result.tokens_per_forward == pytest.approx(6 * 50 / sum(steps))
    assert result.seconds > 0


def test_keeps_the_first_failures_in_the_order_of_the_examples() -> None:
    report = evaluate(Oracle(lambda _: "no").model, NUMBERS, batch_size=4)
    assert len(report.failures) == MAX_FAILURES
    assert [one.index for one in report.failures] == list(range(MAX_FAILURES))
    first = report.failures[0]
    assert (first.task, first.prompt, first.expected, first.got) == ("double", "twice 0", "0", "no")
    assert first.seed == row_seed(0, 0)


def test_failures_are_kept_for_each_task() -> None:
    others = [Example("triple", f"thrice {n}", "?") for n in range(3)]
    report = evaluate(Oracle(lambda _: "no").model, [*NUMBERS, *others])
    assert [one.task for one in report.results] == ["double", "triple"]
    assert sum(one.task == "triple" for one in report.failures) == 3


@given(st.integers(1, 60), st.integers(0, 2**63 - 1))
def test_every_example_is_asked_once_with_its_own_seed(batch_size: int, seed: int) -> None:
    oracle = Oracle(doubles)
    evaluate(oracle.model, NUMBERS, seed=seed, batch_size=batch_size)
    assert all(len(batch) <= batch_size for batch in oracle.batches)
    asked = {one.prompt: [row_seed(seed, n)] for n, one in enumerate(NUMBERS)}
    assert oracle.seeds == asked


@given(st.integers(0, 2**63 - 1), st.integers(0, 10**6), st.integers(1, 10**6))
def test_seeds_differ_where_generators_look(seed: int, index: int, step: int) -> None:
    one, other = row_seed(seed, index), row_seed(seed, index + step)
    assert 0 <= one < 2**63
    assert one != other
    assert row_seed(seed, index) == one


def test_seeds_of_one_run_differ_in_their_low_bits() -> None:
    # torch's generator on the CPU reads 32 bits of a seed.
    assert len({row_seed(0, index) & 0xFFFFFFFF for index in range(1000)}) == 1000


def test_batches_hold_rows_alike_the_hardest_first() -> None:
    oracle = Oracle(doubles)
    evaluate(oracle.model, NUMBERS, batch_size=10)
    holes = {one.prompt: one.detail["holes"] for one in NUMBERS}
    asked = [(holes[prompt], len(prompt)) for batch in oracle.batches for prompt in batch]
    assert asked == sorted(asked, reverse=True)


def test_progress_counts_up_to_the_whole() -> None:
    told: list[Progress] = []
    evaluate(Oracle(doubles).model, NUMBERS, batch_size=20, on_progress=told.append)
    assert [(one.task, one.done, one.total) for one in told] == [
        ("double", 20, 50),
        ("double", 40, 50),
        ("double", 50, 50),
    ]
    assert told[-1].solved == 30
    assert told[0].seconds <= told[-1].seconds
    assert {one.setting for one in told} == {""}


def test_the_settings_and_the_mode_reach_the_model() -> None:
    oracle = Oracle(doubles)
    evaluate(oracle.model, NUMBERS[:3])
    evaluate(
        oracle.model, NUMBERS[:3], generation=GenerationConfig(max_denoising_steps=5),
        mode="autoregressive",
    )  # fmt: skip
    assert oracle.calls[0] == (GenerationConfig(), "diffusion")
    assert oracle.calls[-1] == (GenerationConfig(max_denoising_steps=5), "autoregressive")


def test_named_tasks_are_their_heldout_examples() -> None:
    answers = {one.prompt: one.answer for one in heldout("dates", 12, 5)}
    oracle = Oracle(answers.__getitem__)
    report = evaluate(oracle.model, "dates", n=12, seed=5)
    assert report.results[0].solved == 12
    assert sorted(oracle.seeds) == sorted(answers)


def test_sudoku_is_checked_by_its_own_rule() -> None:
    (example,) = heldout("sudoku:10-12", 1, 0)
    spaced = " ".join(example.answer)
    assert is_solved(example, spaced)
    wrong = example.answer[::-1]
    assert is_solved(example, wrong) is (wrong == example.answer)


def test_unknown_tasks_are_checked_by_exact_match() -> None:
    example = Example("somebody's", "p", "An answer")
    assert is_solved(example, " An answer \n")
    assert not is_solved(example, "an answer")
    assert not is_solved(example, "An  answer")


def test_a_tiny_network_gives_the_same_answers_in_any_batch(tiny: Model) -> None:
    examples = [*heldout("dates", 5, 1), *heldout("copy", 5, 1)]
    found = []
    for batch_size in (1, 3, 10):
        report = evaluate(tiny, examples, seed=11, batch_size=batch_size)
        got = [(one.index, one.got) for one in report.failures]
        costs = [(one.steps_per_canvas, one.tokens_per_forward) for one in report.results]
        found.append((got, costs))
    assert found == [found[0]] * 3
    assert len({text for _, text in found[0][0]}) > 5  # the answers do hang on something


def test_an_answer_comes_again_from_its_seed(tiny: Model) -> None:
    report = evaluate(tiny, "units", n=4, seed=2)
    for failure in report.failures:
        assert tiny.answer(failure.prompt, seed=failure.seed) == failure.got


def test_another_seed_gives_other_answers(tiny: Model) -> None:
    example = heldout("numbers", 1, 0)
    one, other = (evaluate(tiny, example, seed=seed).failures[0].got for seed in (1, 2))
    assert one != other


def test_autoregressive_mode_on_a_tiny_network(tiny: Model) -> None:
    report = evaluate(tiny, "dates", n=3, mode="autoregressive", batch_size=2)
    (result,) = report.results
    assert result.steps_per_canvas is None
    assert result.tokens_per_forward == 1.0


def test_prompts_are_one_user_turn(tiny: Model) -> None:
    (rendered,) = render(tiny, task_sets([Example("t", "three", "3")], 1, 0))
    spelled = tiny.tokenizer.decode(rendered.prompts[0], skip_control=False)
    assert spelled == "<bos><|turn>user\nthree<turn|>\n<|turn>model\n"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


def test_a_file_is_grouped_by_task(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    rows = [("b", "p1", "x"), ("a", "p2", "y"), ("b", "p3", "z")]
    lines = [json.dumps({"task": t, "prompt": p, "answer": a}) for t, p, a in rows]
    path.write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    sets = read_task_sets(path)
    assert [one.name for one in sets] == ["b", "a"]
    assert [one.prompt for one in sets[0].examples] == ["p1", "p3"]


def test_a_written_set_evaluates_as_the_named_one(tmp_path: Path) -> None:
    write_heldout(tmp_path / "dates.jsonl", "dates", 8, 4)
    answers = {one.prompt: one.answer for one in heldout("dates", 8, 4)[::2]}
    oracle = Oracle(lambda prompt: answers.get(prompt, "?"))
    by_name = evaluate(oracle.model, "dates", n=8, seed=4)
    by_file = evaluate(oracle.model, read_task_sets(tmp_path / "dates.jsonl"), seed=4)
    assert by_file.failures == by_name.failures
    assert by_file.results[0].solved == by_name.results[0].solved == 4


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "is not JSON"),
        ("[1]", "is not a JSON object"),
        ('{"task": "a", "prompt": "b"}', "'answer'"),
        ('{"task": "a", "prompt": "b", "answer": 3}', "'answer'"),
        ('{"task": "a", "prompt": "", "answer": "c"}', "'prompt'"),
        ('{"task": "a", "prompt": "b", "answer": "c", "note": 1}', "'note'"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"task": "a", "prompt": "b", "answer": "c"}\n' + line, encoding="utf-8")
    with pytest.raises(EvaluationError, match="line 2") as caught:
        read_task_sets(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe"])
def test_a_file_of_nothing_is_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_bytes(content)
    with pytest.raises(EvaluationError, match=r"mine\.jsonl"):
        read_task_sets(path)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"gone\.jsonl"):
        read_task_sets(tmp_path / "gone.jsonl")


def test_sets_of_every_kind_go_together() -> None:
    mine = TaskSet("mine", (NUMBERS[0],))
    sets = task_sets(["dates", mine, NUMBERS[1], NUMBERS[2]], n=2, seed=0)
    assert [(one.name, len(one.examples)) for one in sets] == [
        ("dates", 2),
        ("mine", 1),
        ("double", 2),
    ]


def test_a_name_twice_is_an_error() -> None:
    with pytest.raises(EvaluationError, match="'dates' is given twice"):
        task_sets(["dates", "units", "dates"], 1, 0)


def test_no_work_is_an_error() -> None:
    with pytest.raises(EvaluationError, match="nothing to evaluate"):
        task_sets([], 1, 0)
    with pytest.raises(EvaluationError, match="holds no example"):
        TaskSet("mine", ())


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(InputError, match="no task 'poems'"):
        task_sets("poems", 1, 0)


@pytest.mark.parametrize("n", [0, -5])
def test_a_set_of_none_is_an_error(n: int) -> None:
    with pytest.raises(EvaluationError, match="1 or more"):
        evaluate(Oracle(doubles).model, "dates", n=n)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_of_none_is_an_error(batch_size: int) -> None:
    with pytest.raises(EvaluationError, match="1 row or more"):
        evaluate(Oracle(doubles).model, NUMBERS, batch_size=batch_size)


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_out_of_range_is_an_error(seed: int) -> None:
    with pytest.raises(EvaluationError, match="seed"):
        evaluate(Oracle(doubles).model, NUMBERS, seed=seed)


def test_a_prompt_too_long_is_told_before_any_is_asked() -> None:
    # 2,000 positions: a prompt of 1,744 characters and 256 new tokens just fit.
    oracle = Oracle(lambda _: "")
    fitting = Example("long", "x" * 1744, "y")
    assert evaluate(oracle.model, [fitting]).results[0].examples == 1
    oracle.batches.clear()
    with pytest.raises(EvaluationError, match=r"example 2 of long is too long: 1745 tokens"):
        evaluate(oracle.model, [fitting, Example("long", "x" * 1745, "y")])
    assert oracle.batches == []


def test_room_is_counted_in_whole_canvases_only_where_there_are_canvases() -> None:
    settings = GenerationConfig(max_new_tokens=250)  # 256 in canvases of 8
    example = [Example("long", "x" * 1750, "y")]
    oracle = Oracle(lambda _: "")
    evaluate(oracle.model, example, generation=settings, mode="autoregressive")
    with pytest.raises(EvaluationError, match="256 new ones"):
        evaluate(oracle.model, example, generation=settings)
