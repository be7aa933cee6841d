"""Examples to tensors. The batch of a step is a pure function of the seed and the step."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from sfumato.config.model import ModelConfig
from sfumato.errors import TrainingError
from sfumato.tasks.base import Example
from sfumato.tasks.heldout import read_examples
from sfumato.tasks.mixture import HoleCurriculum, Mixture
from sfumato.tasks.sudoku import cached_bank
from sfumato.text.chat import Chat, Message
from sfumato.text.spellings import Control
from sfumato.text.template import ChatTemplate
from sfumato.text.tokenizer import Tokenizer
from sfumato.training.config import FamilyConfig, TrainConfig
from sfumato.training.losses import IGNORED, Batch

SMALL_FOLDER = Path(__file__).parent.parent / "small"
TURN_END = "<turn|>"
_MARK = "sfumato-prompt-goes-here"
_DIFFERENT = 1 << 20  # families of one source draw different examples


class PromptForm:
    """The chat template as a form with one blank: a template's worth of ids at a split's price.

    The template is rendered once with a mark for the user's text; each prompt is then the same
    segments with the text in the mark's place.
    """

    def __init__(self, folder: Path) -> None:
        self.tokenizer = Tokenizer.from_folder(folder)
        self.turn_end = self.tokenizer.control_id(TURN_END)
        template = ChatTemplate.from_folder(folder, self.tokenizer)
        try:
            message = {"role": "user", "content": _MARK}
            self._segments = template.render([message], tools=(), enable_thinking=False)
            self._check(Chat(self.tokenizer, template))
        finally:
            template.close()

    def _check(self, chat: Chat) -> None:
        for text in ("Hello, world", "1.3\n.5 x"):
            if chat.render([Message("user", text)]) != self.prompt(text):
                raise TrainingError("the chat template does more with a prompt than insert it")

    def prompt(self, text: str) -> list[int]:
        """Ids of one user turn, up to where the model's begins."""
        return self.tokenizer.encode_prompt(
            part if isinstance(part, Control) else part.replace(_MARK, text.strip())
            for part in self._segments
        )

    def answer(self, text: str) -> list[int]:
        """Ids of the answer and the end of its turn."""
        return [*self.tokenizer.encode_text(text), self.turn_end]


def _is_sudoku(source: str) -> bool:
    return source == "sudoku" or source.startswith("sudoku:")


@dataclass(frozen=True)
class Piece:
    """One canvas of one example: what stands before it, and the clean tokens that fill it."""

    prefix: tuple[int, ...]
    tokens: tuple[int, ...]  # at most a canvas; shorter where the answer ends


def cut(prompt: Sequence[int], answer: Sequence[int], length: int, rng: random.Random) -> Piece:
    """One of the answer's canvases of `length`, uniform; the earlier ones join the prefix."""
    start = length * rng.randrange(-(-len(answer) // length))
    return Piece((*prompt, *answer[:start]), tuple(answer[start : start + length]))


class Data:
    """All families of a run."""

    def __init__(self, config: TrainConfig, model: ModelConfig, run_dir: Path) -> None:
        folder = Path(config.data.tokenizer) if config.data.tokenizer else SMALL_FOLDER
        self.config = config
        self.folder = folder
        self.form = PromptForm(folder)
        self.canvas_length = model.canvas_length
        self.eos = model.text.eos_token_id[0]
        self.pad = model.text.pad_token_id or 0
        self._run_dir = run_dir
        self._files: dict[str, list[Example]] = {}
        if self.form.tokenizer.vocab_size > model.text.vocab_size:
            raise TrainingError(
                f"the tokenizer has {self.form.tokenizer.vocab_size} ids, the model's vocabulary "
                f"{model.text.vocab_size}"
            )

    @cached_property
    def mixture(self) -> Mixture:
        """The tasks' mixture, with the Sudoku grids if a family needs them."""
        data, bank = self.config.data, None
        if any(_is_sudoku(family.source) for family in self.config.families):
            path = Path(data.sudoku_bank) if data.sudoku_bank else self._run_dir / "sudoku.npy"
            bank = cached_bank(path, self.config.seed, data.sudoku_grids)
        curriculum = HoleCurriculum(data.sudoku_ramp, data.sudoku_hard)
        return Mixture(dict(data.text_weights) or None, self.config.seed, bank, curriculum)

    def prepare(self) -> None:
        """Make now what the first batches would: several workers may ask for it at once."""
        if not all(family.source.endswith(".jsonl") for family in self.config.families):
            _ = self.mixture
        for family in self.config.families:
            if family.source.endswith(".jsonl"):
                self._from_file(family.source, 0, 1)

    def batch(self, step: int, index: int) -> Batch:
        """The micro-batch of family number `index` at `step` (0-based)."""
        family = self.config.families[index]
        rng = random.Random(f"{self.config.seed}:batch:{index}:{step}")
        with_encoder = rng.random() < family.encoder_probability
        pieces = self._pieces(step, index, rng)
        return self.collate(pieces, family, with_encoder)

    def _pieces(self, step: int, index: int, rng: random.Random) -> list[Piece]:
        family = self.config.families[index]
        count = family.rows * (family.candidates if family.fitting_only else 1)
        before = self.config.families[:index] if family.leftover else ()
        earlier = [other for other in before if other.source == family.source]
        pieces: list[Piece] = []
        for example in self._examples(step, index, count):
            if len(pieces) == family.rows:
                break
            answer = self.form.answer(example.answer)
            piece = cut(self.form.prompt(example.prompt), answer, self.canvas_length, rng)
            if self._fits(piece, family):
                if not any(self._fits(piece, other) for other in earlier):
                    pieces.append(piece)
            elif not family.fitting_only:
                raise TrainingError(
                    f"family {index} ({family.source}): an example of {len(piece.prefix)} prompt "
                    f"and {len(piece.tokens)} answer tokens does not fit its widths",
                    hint="raise prompt_width, stream_width or canvas_width, or set fitting_only",
                )
        if len(pieces) < family.rows:
            raise TrainingError(
                f"family {index} ({family.source}): of {count} examples only {len(pieces)} fit "
                "its widths"
                + (" and not those of earlier families" if earlier else "")
                + f", and it needs {family.rows}",
                hint="raise its candidates, or prompt_width, stream_width or canvas_width",
            )
        return pieces

    def _fits(self, piece: Piece, family: FamilyConfig) -> bool:
        prefix, own = len(piece.prefix), len(piece.tokens)
        return (
            prefix <= family.prompt_width
            and own <= family.canvas_width
            and prefix + own <= family.stream_width
        )

    def _examples(self, step: int, index: int, count: int) -> Sequence[Example]:
        family = self.config.families[index]
        if family.source.endswith(".jsonl"):
            return self._from_file(family.source, step, count)
        progress = min(1.0, step / self.config.max_steps)
        place = step + index * _DIFFERENT
        return self.mixture.batch(place, family.source, count, progress)

    def _from_file(self, source: str, step: int, count: int) -> list[Example]:
        """The next `count` examples of a file, in an order shuffled anew for every epoch."""
        if source not in self._files:
            self._files[source] = read_examples(source)
        examples = self._files[source]
        orders: dict[int, list[int]] = {}
        chosen = []
        for place in range(step * count, (step + 1) * count):
            epoch, offset = divmod(place, len(examples))
            if epoch not in orders:
                order = list(range(len(examples)))
                random.Random(f"{self.config.seed}:{source}:{epoch}").shuffle(order)
                orders[epoch] = order
            chosen.append(examples[orders[epoch][offset]])
        return chosen

    def collate(self, pieces: Sequence[Piece], family: FamilyConfig, with_encoder: bool) -> Batch:
        """Tensors of the family's widths; without the encoder's loss, prompts alone.

        Uncompiled, a batch is no wider than its longest stream.
        """
        streams = [
            [*piece.prefix, *piece.tokens] if with_encoder else list(piece.prefix)
            for piece in pieces
        ]
        lengths = torch.tensor([len(stream) for stream in streams])
        width = family.stream_width if with_encoder else family.prompt_width
        prompt_width = family.prompt_width
        if not self.config.compile:
            width = int(lengths.max())
            prompt_width = max(len(piece.prefix) for piece in pieces)
        fill = family.canvas_width
        batch = Batch(
            encode_ids=_padded(streams, width, self.pad),
            encode_real=torch.arange(width) < lengths[:, None],
            starts=torch.tensor([len(piece.prefix) for piece in pieces]),
            targets=_padded([piece.tokens for piece in pieces], fill, self.eos),
            prompt_width=prompt_width,
        )
        if not with_encoder:
            return batch
        return _with_labels(batch, lengths, family)


def _with_labels(batch: Batch, lengths: Tensor, family: FamilyConfig) -> Batch:
    """Supervise the encode stream: each place predicts the next token, the last one nothing."""
    everywhere = family.encoder_on == "all"
    count = family.stream_width - 1 if everywhere else family.canvas_width
    first = torch.zeros_like(batch.starts) if everywhere else batch.starts - 1
    places = first[:, None] + torch.arange(count)
    inside = places + 1 < lengths[:, None]
    places = torch.where(inside, places, 0)
    labels = torch.where(inside, batch.encode_ids.gather(1, places + 1), IGNORED)
    return Batch(
        batch.encode_ids,
        batch.encode_real,
        batch.starts,
        batch.targets,
        batch.prompt_width,
        places,
        labels,
    )


def _padded(rows: Sequence[Sequence[int]], width: int, fill: int) -> Tensor:
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows])
