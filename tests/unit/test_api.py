"""The public interface on a random network: what it returns, what it refuses and how it says so."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import sfumato
from sfumato.api import SMALL_FOLDER, Model
from sfumato.config.generation import GenerationConfig
from sfumato.diffusion.events import CommitEvent, StepEvent
from sfumato.errors import CheckpointError, ContextLengthError, InputError
from sfumato.model.diffusion_gemma import DiffusionGemma
from sfumato.text.tokenizer import Tokenizer
from tests.helpers import Shape, randomise, tiny_config

SHAPE = Shape(window=6, canvas=8)
SETTINGS = GenerationConfig(max_new_tokens=20, max_denoising_steps=5, eos_token_id=(5,))


@pytest.fixture(scope="module")
def model() -> Model:
    network = DiffusionGemma(tiny_config(SHAPE))
    randomise(network, 11)
    return Model(network.eval(), SETTINGS)


def prompt(rows: int = 1, length: int = 7, seed: int = 0) -> torch.Tensor:
    return torch.randint(6, 90, (rows, length), generator=torch.Generator().manual_seed(seed))


def test_public_names_are_importable_and_listed() -> None:
    for name in sfumato.__all__:
        assert getattr(sfumato, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        sfumato.nothing  # noqa: B018


def test_generation_honours_its_limit_and_counts_truly(model: Model) -> None:
    out = model.generate(prompt(2), seed=1, generation=SETTINGS.replace(eos_token_id=()))
    assert [len(row) for row in out.tokens] == [20, 20]
    assert out.text is None
    assert out.stats.canvases == [3, 3]
    assert all(3 <= steps <= 15 for steps in out.stats.steps)
    assert out.stats.tokens_per_forward == [20 / steps for steps in out.stats.steps]
    assert out.stats.seconds > 0


def test_max_new_tokens_goes_before_the_settings(model: Model) -> None:
    out = model.generate(prompt(), max_new_tokens=3, generation=SETTINGS.replace(eos_token_id=()))
    assert len(out.tokens[0]) == 3


def test_equal_seeds_give_equal_tokens_and_rows_do_not_depend_on_their_batch(model: Model) -> None:
    # One short canvas: a batch's matrix products round unlike a row's, and a random network
    # amplifies that last bit several times a step.
    short = SETTINGS.replace(max_new_tokens=8, max_denoising_steps=3)
    ids = prompt(3)
    together = model.generate(ids, seed=[4, 5, 6], generation=short)
    assert together.tokens == model.generate(ids, seed=[4, 5, 6], generation=short).tokens
    for row, seed in enumerate((4, 5, 6)):
        alone = model.generate(ids[row, None], seed=seed, generation=short)
        assert alone.tokens[0] == together.tokens[row]


def test_events_tell_every_step_and_every_canvas(model: Model) -> None:
    steps: list[StepEvent] = []
    commits: list[CommitEvent] = []
    settings = SETTINGS.replace(eos_token_id=())
    out = model.generate(
        prompt(), generation=settings, on_step=steps.append, on_commit=commits.append
    )
    assert [event.canvas_index for event in commits] == [0, 1, 2]
    assert len(steps) == out.stats.steps[0]
    for event in steps:
        assert event.argmax.shape == event.entropy.shape == event.accepted.shape == (1, 8)
        assert 1 <= event.step <= event.steps_max == 5
        assert bool(event.accepted.any())
    written = torch.cat([event.tokens[0] for event in commits]).tolist()
    assert written[:20] == out.tokens[0]


def test_autoregressive_sampling_is_seeded_and_needs_its_switch(model: Model) -> None:
    ids = prompt()
    greedy = model.generate(ids, mode="autoregressive", seed=1)
    assert greedy.tokens == model.generate(ids, mode="autoregressive", seed=2).tokens
    drawn = SETTINGS.replace(do_sample=True, temperature=3.0, eos_token_id=())
    one = model.generate(ids, mode="autoregressive", seed=1, generation=drawn)
    again = model.generate(ids, mode="autoregressive", seed=1, generation=drawn)
    other = model.generate(ids, mode="autoregressive", seed=2, generation=drawn)
    assert one.tokens == again.tokens != other.tokens
    assert one.stats.canvases == [0]


def test_autoregressive_rows_end_on_their_own(model: Model) -> None:
    """A row that has stopped does not disturb the others, whatever it would have gone on to say."""
    ids = prompt(2)
    alone = [
        model.generate(row[None], mode="autoregressive", max_new_tokens=12).tokens[0] for row in ids
    ]
    stop = alone[0][2]
    settings = SETTINGS.replace(eos_token_id=(stop,), max_new_tokens=12)
    out = model.generate(ids, mode="autoregressive", generation=settings)
    expected = [row[: row.index(stop) + 1] if stop in row else row for row in alone]
    assert out.tokens == expected


def test_denoise_leaves_the_cache_alone(model: Model) -> None:
    cache = model.encode(prompt())
    canvas = prompt(1, 8, 3)
    first = model.denoise(canvas, cache)
    assert torch.equal(first, model.denoise(canvas, cache))
    assert cache.length == 7


def test_a_fork_does_not_follow_its_original(model: Model) -> None:
    cache = model.encode(prompt())
    fork = cache.fork()
    before = model.denoise(prompt(1, 8, 3), fork)
    model.encode(prompt(1, 9, 2), cache)
    assert (cache.length, fork.length) == (16, 7)
    assert torch.equal(before, model.denoise(prompt(1, 8, 3), fork))


def test_sliding_layers_keep_the_window_and_full_layers_everything(model: Model) -> None:
    layers = model.encode(prompt(1, 30)).layers
    assert [len(held.keys or ()) for held in layers] == [5, 5, 30]
    assert [len(held.raw or ()) for held in layers] == [0, 0, 30]


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (torch.tensor([[1, 97]]), "token id 97 is out of range"),
        (torch.tensor([[-1, 3]]), "token id -1 is out of range"),
        (torch.zeros(1, 0, dtype=torch.long), "prompt is empty"),
        (torch.zeros(3), "integer tensor"),
        (torch.zeros(1, 3), "integer tensor"),
        ([[1, 2]], "integer tensor"),
    ],
)
def test_ids_that_cannot_be_are_refused(model: Model, ids: Any, words: str) -> None:
    for call in (model.encode, model.generate):
        with pytest.raises(InputError, match=words):
            call(ids)


@pytest.mark.parametrize("mode", ["diffusion", "autoregressive"])
def test_a_prompt_longer_than_the_context_is_refused(model: Model, mode: Any) -> None:
    with pytest.raises(ContextLengthError, match="maximum context length is 4096 tokens"):
        model.generate(prompt(1, 4090), mode=mode)
    with pytest.raises(ContextLengthError, match="4097 tokens"):
        model.encode(prompt(1, 4097))


@pytest.mark.parametrize("seed", [-1, 2**63, True, [1, 2], [-4], 1.5, None, "7", [None], [[3]]])
def test_seeds_that_cannot_be_are_refused(model: Model, seed: Any) -> None:
    with pytest.raises(InputError, match="seed"):
        model.generate(prompt(), seed=seed)


def test_what_does_not_fit_together_is_refused(model: Model) -> None:
    cache = model.encode(prompt(2))
    with pytest.raises(InputError, match="holds 2 rows"):
        model.encode(prompt(3), cache)
    with pytest.raises(InputError, match="holds 2"):
        model.denoise(prompt(1, 8), cache)
    with pytest.raises(InputError, match=r"must be \[2, 8, 97\]"):
        model.denoise(prompt(2, 8), cache, torch.zeros(2, 8, 96))
    with pytest.raises(InputError, match="attention_mask"):
        model.encode(prompt(2), attention_mask=torch.ones(2, 3))
    with pytest.raises(InputError, match="attention_mask must be a tensor"):
        model.encode(prompt(2), attention_mask=[[1] * 7] * 2)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="cache is empty"):
        model.network.denoise(prompt(1, 8), model.network.new_cache())
    with pytest.raises(InputError, match="mode must be"):
        model.generate(prompt(), mode="both")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no tokenizer"):
        model.answer("hello")


@pytest.mark.parametrize("mode", ["diffusion", "autoregressive"])
def test_a_row_of_padding_alone_is_an_empty_prompt(model: Model, mode: Any) -> None:
    mask = torch.tensor([[True] * 7, [False] * 7])
    with pytest.raises(InputError, match="row 2 of the prompt is empty"):
        model.generate(prompt(2), attention_mask=mask, mode=mode)
    cache = model.encode(prompt(2))
    later = model.encode(prompt(2), cache, attention_mask=mask)  # a row may have nothing to add
    assert later.next_position is not None
    assert later.next_position.tolist() == [14, 7]


@pytest.mark.parametrize("watch", ["on_step", "on_commit"])
def test_watching_canvases_where_there_are_none_is_refused(model: Model, watch: str) -> None:
    with pytest.raises(InputError, match=f"{watch} .* autoregressive"):
        model.generate(prompt(), mode="autoregressive", **{watch: print})  # type: ignore[arg-type]


def test_a_pad_id_outside_the_vocabulary_is_refused(model: Model) -> None:
    with pytest.raises(InputError, match="pad_token_id 97 is out of range"):
        model.generate(prompt(), generation=SETTINGS.replace(pad_token_id=97))


def test_a_prompt_and_its_canvases_may_fill_the_context() -> None:
    config = tiny_config(SHAPE)
    small = replace(config, text=replace(config.text, max_position_embeddings=40))
    network = DiffusionGemma(small)
    randomise(network, 11)
    settings = SETTINGS.replace(max_new_tokens=16, max_denoising_steps=1, eos_token_id=())
    tight = Model(network.eval(), settings)
    assert len(tight.generate(prompt(1, 24)).tokens[0]) == 16
    with pytest.raises(ContextLengthError, match="25 tokens and 16 new ones"):
        tight.generate(prompt(1, 25))


def test_images_are_refused_without_a_tower(model: Model) -> None:
    with pytest.raises(InputError, match="no vision tower"):
        model.network.soft_tokens(torch.zeros(1, 9, 768), torch.zeros(1, 9, 2, dtype=torch.long))


@pytest.mark.parametrize("mode", ["diffusion", "autoregressive"])
def test_a_network_that_computes_nan_is_named(mode: Any) -> None:
    network = DiffusionGemma(tiny_config(SHAPE))
    randomise(network, 1)
    with torch.no_grad():
        network.model.decoder.norm.weight[3] = torch.nan
    with pytest.raises(CheckpointError, match="NaN"):
        Model(network.eval(), SETTINGS).generate(prompt(), mode=mode)


def test_rows_without_tokens_are_padded_to_nothing_and_refused(model: Model) -> None:
    ids, mask = model.pad([[], []])
    assert ids.shape == mask.shape == (2, 0)
    with pytest.raises(InputError, match="prompt is empty"):
        model.generate(ids)
    assert model.pad([[7], [8, 9]])[0].tolist() == [[0, 7], [8, 9]]


@torch.inference_mode()
def test_a_selected_cache_is_the_rows_own(model: Model) -> None:
    ids, canvas = prompt(3, 9), prompt(3, 8, 5)
    mask = torch.arange(9) >= torch.tensor([[0], [4], [2]])
    cache = model.encode(ids, attention_mask=mask)
    rows = torch.tensor([False, True, True])
    part = cache.select(rows)
    assert (part.batch_size, cache.batch_size) == (2, 3)
    expected = model.denoise(canvas, cache)[rows]
    torch.testing.assert_close(model.denoise(canvas[rows], part), expected, rtol=1e-4, atol=1e-4)


def test_many_prompts_are_answered_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    small = sfumato.load()
    quick = small.generation_config.replace(max_denoising_steps=2)
    prompts = ["7 days to weeks", "Date: May 3, 2021", "In words: 41"]
    alone = [small.answer(prompt, seed=3, generation=quick) for prompt in prompts]
    widths: list[int] = []
    generate = Model.generate

    def counted(self: Model, ids: torch.Tensor, *rest: Any, **named: Any) -> Any:
        widths.append(ids.shape[0])
        return generate(self, ids, *rest, **named)

    monkeypatch.setattr(Model, "generate", counted)
    monkeypatch.setattr("sfumato.api.ANSWER_LOGITS", 1)
    assert small.answer(prompts, seed=3, generation=quick) == alone
    monkeypatch.setattr("sfumato.api.ANSWER_LOGITS", 2 * 84 * 2048)
    assert len(small.answer(prompts, seed=3, generation=quick)) == 3
    assert widths == [1, 1, 1, 2, 1]


def test_a_model_knows_which_commit_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = tmp_path / "snapshots" / commit
    shutil.copytree(SMALL_FOLDER, folder)
    asked: list[tuple[Any, Any]] = []

    def resolve(name: Any, revision: Any = None) -> Path:
        asked.append((name, revision))
        return folder

    monkeypatch.setattr("sfumato.weights.hub.resolve", resolve)
    assert sfumato.load("someone/model", revision="main").revision == commit
    assert asked == [("someone/model", "main")]
    monkeypatch.undo()
    assert sfumato.load(SMALL_FOLDER).revision is None
    with pytest.raises(InputError, match="no revisions"):
        sfumato.load(revision="main")


def test_the_tokenizer_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, read = sfumato.load(), []
    whole = Tokenizer.from_folder

    def counted(folder: Path) -> Tokenizer:
        read.append(folder)
        return whole(folder)

    monkeypatch.setattr(Tokenizer, "from_folder", counted)
    first, second = (model.answer("3 ft in cm", max_new_tokens=8) for _ in range(2))
    assert first == second
    assert len(read) == 1
