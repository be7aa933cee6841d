"""The small model's tokenizer: byte-level BPE of 2,048 tokens that suits copying and grids.

Each digit, each point, each space and each line break is always a token of its own, so a grid
has one token a cell and a word has the same tokens after a space, a quote or a bracket.
"""

from __future__ import annotations

import json
import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from sfumato.tasks import words
from sfumato.tasks.registry import TASKS
from sfumato.tasks.sudoku import WORDINGS

VOCABULARY = 2048
SPECIAL = (
    "<pad>",
    "<eos>",
    "<bos>",
    "<unk>",
    "<|turn>",
    "<turn|>",
    "<|channel>",
    "<channel|>",
    "<|think|>",
    "<|tool_call>",
    "<tool_call|>",
    "<|tool_response>",
    "<tool_response|>",
    "<|image>",
    "<image|>",
    "<|image_soft|>",
)
_ROLES = ("user", "model", "system", "thought")
_FIRST = "0123456789."
_ALONE = r"[\d.\n ]"
_PIECES = r"\p{L}+|[^\s\p{L}\d.]+|\s"


def corpus(seed: int, examples: int = 60_000, names: int = 60_000) -> Iterator[str]:
    """Training text of the text tasks, then made-up names so that names split into short pieces."""
    tasks = [t for name, t in TASKS.items() if not name.startswith("sudoku")]
    for index in range(examples):
        example = tasks[index % len(tasks)].example(seed, index, "train")
        yield example.prompt
        yield example.answer
    rng = random.Random(f"{seed}:vocabulary")
    for _ in range(names):
        name = words.syllables(rng)
        yield name if rng.random() < 0.4 else name.capitalize()
    for line in (*WORDINGS, *_ROLES):
        yield from [line] * 400


def _untrained() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_ALONE), "isolated"),
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def trained(seed: int) -> str:
    """The text of tokenizer.json: special ids 0-15, digits 16-25, the point 26, then the rest."""
    tokenizer = _untrained()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=12,
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(seed), trainer)
    data = json.loads(tokenizer.to_str())
    old = data["model"]["vocab"]
    rest = sorted((t for t in old if t not in SPECIAL and t not in _FIRST), key=old.__getitem__)
    order = [*SPECIAL, *_FIRST, *rest]
    data["model"]["vocab"] = {token: index for index, token in enumerate(order)}
    if len(order) != VOCABULARY:
        raise AssertionError(f"the trainer made {len(order)} tokens, not {VOCABULARY}")
    text: str = Tokenizer.from_str(json.dumps(data)).to_str(pretty=True)
    return text


def train_tokenizer(path: str | Path, seed: int) -> None:
    """Write tokenizer.json to `path`: the same bytes for the same seed."""
    path = Path(path)
    text = trained(seed)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
