"""Small training runs for tests: a model of a few thousand weights and a file of examples."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from sfumato.training.config import TrainConfig, parse_train_config

MODEL: dict[str, Any] = {
    "pattern": "SF",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "head_dim": 8,
    "num_key_value_heads": 2,
    "global_head_dim": 16,
    "global_num_key_value_heads": 1,
    "sliding_window": 16,
    "num_experts": 4,
    "top_k_experts": 2,
    "moe_intermediate_size": 16,
    "vocab_size": 2048,
    "canvas_length": 12,
}
FAMILY: dict[str, Any] = {
    "rows": 4,
    "canvases": 2,
    "prompt_width": 24,
    "stream_width": 40,
    "canvas_width": 12,
}
EXAMPLES = [("1+1", "2"), ("3+4", "7"), ("say abc", "abc"), ("12 twice", "12 12"), ("on", "off")]


def recipe(folder: Path, **changes: Any) -> dict[str, Any]:
    """The tables of a recipe that trains on `EXAMPLES`, written into `folder`."""
    examples = folder / "examples.jsonl"
    rows = [{"task": "toy", "prompt": p, "answer": a, "detail": {}} for p, a in EXAMPLES]
    examples.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tables: dict[str, Any] = {
        "run_dir": str(folder / "run"),
        "max_steps": 6,
        "threads": 1,
        "precision": "float32",
        "compile": False,
        "log_every": 1,
        "checkpoint_every": 2,
        "model": MODEL,
        "family": [{"source": str(examples), **FAMILY}],
        "optimiser": {"warmup_steps": 2, "ema_decay": 0.9},
    }
    return copy.deepcopy(tables) | changes


def config(folder: Path, **changes: Any) -> TrainConfig:
    """The parsed `recipe`."""
    return parse_train_config(recipe(folder, **changes))


def toml(tables: dict[str, Any]) -> str:
    """`tables` as TOML: scalars, then tables and arrays of tables."""
    lines = [f"{name} = {json.dumps(value)}" for name, value in _scalars(tables)]
    for name, value in tables.items():
        if isinstance(value, dict):
            lines += [f"[{name}]", *(f"{k} = {json.dumps(v)}" for k, v in value.items())]
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for entry in value:
                lines += [f"[[{name}]]", *(f"{k} = {json.dumps(v)}" for k, v in entry.items())]
    return "\n".join(lines) + "\n"


def _scalars(tables: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(n, v) for n, v in tables.items() if isinstance(v, str | int | float)]
