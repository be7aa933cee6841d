"""What a pass must compute and read, counted from the configuration alone.

A multiplication and an addition are two operations. Counted are the matrix products and attention,
which is nearly everything; norms, rotations, activations and sampling are not. Counted is what has
to be done, not what a program happens to do: experts that no row has chosen, and the soft
embeddings of ids with no probability to speak of, are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sfumato.config.model import LayerConfig, ModelConfig, TextConfig

# In the order in which they are reported.
PROJECTIONS, ATTENTION, DENSE_MLP = "attention projections", "attention", "dense MLP"
ROUTER, EXPERTS, HEAD = "router", "experts", "head"
SELF_CONDITIONING, SOFT_EMBEDDINGS = "self-conditioning", "soft embeddings"
PARTS = (
    PROJECTIONS,
    ATTENTION,
    DENSE_MLP,
    ROUTER,
    EXPERTS,
    HEAD,
    SELF_CONDITIONING,
    SOFT_EMBEDDINGS,
)
_PER_VALUE = 2  # operations of a matrix product for each weight and row


@dataclass(frozen=True)
class Work:
    """Operations, values of weights read at least once, and values of the KV cache read."""

    operations: float = 0.0
    weights: float = 0.0
    cached: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.operations + other.operations,
            self.weights + other.weights,
            self.cached + other.cached,
        )


Parts = dict[str, Work]


def total(parts: Mapping[str, Work]) -> Work:
    """The sum over the parts of a pass."""
    return sum(parts.values(), Work())


def encode_work(
    config: ModelConfig, rows: int, tokens: int, context: int = 0, head_rows: int = 0
) -> Parts:
    """One encode of `tokens` new positions in each of `rows`, after `context` cached ones.

    `head_rows` are the positions that the head is applied to: none while a prompt is read.
    """
    text = config.text
    parts = _layers(text, rows * tokens)
    for layer in text.layers:
        keys = _causal_keys(text, layer, tokens, context)
        parts[ATTENTION] += _attention(text, layer, rows, keys, context)
    if head_rows:
        parts[HEAD] = head_work(config, head_rows)
    return parts


def denoise_work(
    config: ModelConfig,
    rows: int,
    context: int,
    *,
    self_conditioning: bool = True,
    dense_soft_embeddings: bool = False,
) -> Parts:
    """One denoise pass over a canvas in each of `rows`, after `context` cached positions.

    `dense_soft_embeddings` adds the product of all probabilities with the whole embedding table,
    which a pass that gathers the probable ids alone does without.
    """
    text, length = config.text, config.canvas_length
    parts = _layers(text, rows * length)
    for layer in text.layers:
        keys = length * (length + _seen(text, layer, context))
        parts[ATTENTION] += _attention(text, layer, rows, keys, context)
    parts[HEAD] = head_work(config, rows * length)
    if self_conditioning:
        parts[SELF_CONDITIONING] = _product(rows * length, _mlp(text))
    if self_conditioning and dense_soft_embeddings:
        parts[SOFT_EMBEDDINGS] = head_work(config, rows * length)
    return parts


def autoregressive_work(config: ModelConfig, rows: int, context: int) -> Parts:
    """One token in each of `rows`, left to right, after `context` cached positions."""
    return encode_work(config, rows, 1, context, head_rows=rows)


def head_work(config: ModelConfig, positions: int) -> Work:
    """The head over so many `positions`: one product with the embedding table [V, D]."""
    return _product(positions, config.text.vocab_size * config.text.hidden_size)


def experts_hit(experts: int, top_k: int, rows: int) -> float:
    """How many experts `rows` use that choose evenly: each is missed with (1 - K/E)^rows."""
    return experts * (1.0 - (1.0 - top_k / experts) ** rows)


def cache_values(config: ModelConfig, context: int) -> int:
    """Values that the cache of one row must keep: full layers' keys double as values."""
    text = config.text
    return sum(_kept(layer) * _seen(text, layer, context) for layer in text.layers)


def _layers(text: TextConfig, rows: int) -> Parts:
    """Everything in the layers but attention itself, for so many `rows` of the products."""
    hidden, count = text.hidden_size, len(text.layers)
    expert = 3 * hidden * text.moe_intermediate_size  # gate, up and down
    hit = experts_hit(text.num_experts, text.top_k_experts, rows)
    projections = sum(_projections(text, layer) for layer in text.layers)
    return {
        PROJECTIONS: _product(rows, projections),
        ATTENTION: Work(),
        DENSE_MLP: _product(rows, count * _mlp(text)),
        ROUTER: _product(rows, count * hidden * text.num_experts),
        EXPERTS: Work(
            float(_PER_VALUE * rows * text.top_k_experts * expert * count), hit * expert * count
        ),
    }


def _product(rows: int, weights: int) -> Work:
    return Work(float(_PER_VALUE * rows * weights), float(weights))


def _mlp(text: TextConfig) -> int:
    """Weights of a dense gated MLP, in a layer or for self-conditioning."""
    return 3 * text.hidden_size * text.intermediate_size


def _projections(text: TextConfig, layer: LayerConfig) -> int:
    """Weights of a layer's query, key, value and output projections; full layers have no value."""
    shared = layer.num_key_value_heads * (2 if layer.is_sliding else 1)
    heads = 2 * text.num_attention_heads + shared
    return text.hidden_size * heads * layer.head_dim


def _attention(text: TextConfig, layer: LayerConfig, rows: int, keys: float, context: int) -> Work:
    """Scores and mixing of one layer; `keys` are looked at in all by the queries of a row."""
    operations = 2 * _PER_VALUE * rows * text.num_attention_heads * layer.head_dim * keys
    cached = rows * _kept(layer) * _seen(text, layer, context)
    return Work(float(operations), 0.0, float(cached))


def _kept(layer: LayerConfig) -> int:
    """Values the cache keeps for a position: keys and values, or in full layers one for both."""
    return (2 if layer.is_sliding else 1) * layer.num_key_value_heads * layer.head_dim


def _seen(text: TextConfig, layer: LayerConfig, context: int) -> int:
    """Cached positions that a layer's next position sees."""
    return min(context, text.sliding_window - 1) if layer.is_sliding else context


def _causal_keys(text: TextConfig, layer: LayerConfig, tokens: int, context: int) -> float:
    """Positions that `tokens` queries after `context` ones see in all, their own included."""
    if not layer.is_sliding:
        return tokens * context + tokens * (tokens + 1) / 2
    window = text.sliding_window
    growing = min(tokens, max(0, window - context))  # queries that still see everything
    return growing * context + growing * (growing + 1) / 2 + (tokens - growing) * window
