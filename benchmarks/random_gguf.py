"""Write Gemma 4's text layers with random weights as a GGUF file, for timing llama.cpp.

Usage: python benchmarks/random_gguf.py FILE [SHAPE] [--weights q4_k_m|nvfp4|bf16]

DiffusionGemma's layers are Gemma 4's, which llama.cpp runs; what it has not is the decoder around
them. SHAPE is one that `sfumato bench --shape` takes, released:4 if left out. The vocabulary is
made up, and so are the weights: rows repeat every 64, as time does not hang on values. q4_k_m gives
each matrix what llama.cpp's own tool gives it. Needs `pip install gguf xllamacpp`.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfumato.benchmark.shapes import named_shape
from sfumato.config.model import LayerConfig, TextConfig
from sfumato.errors import InputError, SfumatoError

WEIGHTS = ("q4_k_m", "nvfp4", "bf16")
REPEATED = 64  # rows with values of their own
# What rows that are no multiple of 256 long get in place of formats with blocks of 256.
SHORT = {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}
Array = NDArray[Any]


def libraries() -> tuple[Any, Any]:
    """The packages gguf and xllamacpp. Raises InputError without them."""
    try:
        import gguf
        import xllamacpp
    except ImportError as error:
        raise InputError(
            f"this needs the package {error.name}", hint="run: pip install gguf xllamacpp"
        ) from error
    return gguf, xllamacpp


def more_bits(layer: int, layers: int) -> bool:
    """Whether q4_k_m spends six bits on a layer's values and ways down."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


class Packer:
    """Random matrices in a format of llama.cpp's, packed by llama.cpp itself."""

    def __init__(self) -> None:
        self.gguf, own = libraries()
        self._pack = ctypes.CDLL(own.xllamacpp.__file__).ggml_quantize_chunk
        self._pack.restype = ctypes.c_size_t
        self._random = np.random.default_rng(0)

    def matrix(self, kind: str, rows: int, columns: int) -> tuple[Array, Any]:
        """`rows` of `columns` values as bytes [rows, bytes], and the format they have."""
        types = self.gguf.GGMLQuantizationType
        block, _ = self.gguf.GGML_QUANT_SIZES[types[kind]]
        name = kind if columns % block == 0 else SHORT.get(kind)
        if name is None:
            raise InputError(
                f"{kind} has blocks of {block} values, and {columns} is no multiple of that",
                hint="choose other --weights",
            )
        found = types[name]
        block, size = self.gguf.GGML_QUANT_SIZES[found]
        values = self._random.standard_normal((REPEATED, columns), np.float32) * columns**-0.5
        packed = np.zeros((REPEATED, columns // block * size), np.uint8)
        if found == types.BF16:
            packed[:] = (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        else:
            self._pack(
                ctypes.c_int(found.value),
                values.ctypes.data_as(ctypes.c_void_p),
                packed.ctypes.data_as(ctypes.c_void_p),
                ctypes.c_int64(0), ctypes.c_int64(REPEATED), ctypes.c_int64(columns), None,
            )  # fmt: skip
        whole = np.tile(packed, (-(-rows // REPEATED), 1))[:rows]
        return whole, found

    def vector(self, length: int) -> Array:
        """Norms and scales near one."""
        return (1 + 0.1 * self._random.standard_normal(length)).astype(np.float32)


def kinds(weights: str, layer: int, layers: int) -> tuple[str, str]:
    """The formats of most matrices of a layer, and of its values and ways down."""
    if weights == "q4_k_m":
        return "Q4_K", "Q6_K" if more_bits(layer, layers) else "Q4_K"
    return (weights.upper(),) * 2


def layer_matrices(
    text: TextConfig, layer: LayerConfig, usual: str, better: str
) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Name in the file, format and shape [.., rows, columns] of each matrix of a layer."""
    hidden, width = text.hidden_size, text.moe_intermediate_size
    queries = text.num_attention_heads * layer.head_dim
    keys = layer.num_key_value_heads * layer.head_dim
    yield "attn_q", usual, (queries, hidden)
    yield "attn_k", usual, (keys, hidden)
    if layer.is_sliding:
        yield "attn_v", better, (keys, hidden)
    yield "attn_output", usual, (hidden, queries)
    yield "ffn_gate", usual, (text.intermediate_size, hidden)
    yield "ffn_up", usual, (text.intermediate_size, hidden)
    yield "ffn_down", better, (hidden, text.intermediate_size)
    yield "ffn_gate_up_exps", usual, (text.num_experts, 2 * width, hidden)
    yield "ffn_down_exps", better, (text.num_experts, hidden, width)


def layer_vectors(text: TextConfig, layer: LayerConfig) -> Iterator[tuple[str, int]]:
    """Name and length of each vector of a layer."""
    for name in (
        "attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm", "pre_ffw_norm_2",
        "post_ffw_norm_1", "post_ffw_norm_2",
    ):  # fmt: skip
        yield f"{name}.weight", text.hidden_size
    yield "attn_q_norm.weight", layer.head_dim
    yield "attn_k_norm.weight", layer.head_dim
    yield "layer_output_scale.weight", 1
    yield "ffn_gate_inp.scale", text.hidden_size
    yield "ffn_down_exps.scale", text.num_experts


def describe(writer: Any, text: TextConfig) -> None:
    """What llama.cpp must know of the shape, and a vocabulary of that size."""
    sliding = [layer.is_sliding for layer in text.layers]
    full = next(layer for layer in text.layers if not layer.is_sliding)
    near = next(layer for layer in text.layers if layer.is_sliding)
    writer.add_context_length(text.max_position_embeddings)
    writer.add_embedding_length(text.hidden_size)
    writer.add_block_count(len(text.layers))
    writer.add_feed_forward_length(text.intermediate_size)
    writer.add_head_count(text.num_attention_heads)
    writer.add_head_count_kv([layer.num_key_value_heads for layer in text.layers])
    writer.add_layer_norm_rms_eps(text.rms_norm_eps)
    writer.add_key_length(full.head_dim)
    writer.add_value_length(full.head_dim)
    writer.add_key_length_swa(near.head_dim)
    writer.add_value_length_swa(near.head_dim)
    writer.add_rope_dimension_count(full.head_dim)
    writer.add_rope_dimension_count_swa(near.head_dim)
    writer.add_rope_freq_base(text.rope_full.theta)
    writer.add_rope_freq_base_swa(text.rope_sliding.theta)
    writer.add_sliding_window(text.sliding_window)
    writer.add_sliding_window_pattern(sliding)
    writer.add_shared_kv_layers(0)
    writer.add_embedding_length_per_layer_input(0)
    writer.add_expert_count(text.num_experts)
    writer.add_expert_used_count(text.top_k_experts)
    writer.add_expert_feed_forward_length(text.moe_intermediate_size)
    writer.add_final_logit_softcapping(text.final_logit_softcapping)
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    control, byte, normal = 3, 6, 1  # kinds of tokens
    tokens += [f"w{number}" for number in range(text.vocab_size - len(tokens))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([control] * 4 + [byte] * 256 + [normal] * (len(tokens) - 260))
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(False)


def write(target: Path, text: TextConfig, weights: str) -> None:
    """Write the file; what is there is replaced.

    Raises InputError for a shape of one kind of layers alone, or with rows that `weights` has not.
    """
    if len({layer.is_sliding for layer in text.layers}) != 2:
        raise InputError("the shape has one kind of layers", hint="choose a longer one: released:4")
    packer = Packer()
    part = target.with_name(f"{target.name}.part")
    writer = packer.gguf.GGUFWriter(str(part), "gemma4")
    describe(writer, text)
    count = len(text.layers)

    def add(name: str, kind: str, shape: tuple[int, ...]) -> None:
        *leading, rows, columns = shape
        data, found = packer.matrix(kind, int(np.prod([*leading, rows])), columns)
        writer.add_tensor(name, data.reshape(*leading, rows, -1), raw_dtype=found)

    embedding = "Q6_K" if weights == "q4_k_m" else weights.upper()
    add("token_embd.weight", embedding, (text.vocab_size, text.hidden_size))
    writer.add_tensor("output_norm.weight", packer.vector(text.hidden_size))
    half = next(one for one in text.layers if not one.is_sliding).head_dim // 2
    turned = int(half * text.rope_full.partial_rotary_factor)
    still = np.full(half - turned, 1e30, np.float32)
    writer.add_tensor("rope_freqs.weight", np.concatenate([np.ones(turned, np.float32), still]))
    for index, layer in enumerate(text.layers):
        usual, better = kinds(weights, index, count)
        for name, kind, shape in layer_matrices(text, layer, usual, better):
            add(f"blk.{index}.{name}.weight", kind, shape)
        for name, length in layer_vectors(text, layer):
            writer.add_tensor(f"blk.{index}.{name}", packer.vector(length))
        router = packer.vector(text.num_experts * text.hidden_size) - 1
        shape = (text.num_experts, text.hidden_size)
        writer.add_tensor(f"blk.{index}.ffn_gate_inp.weight", router.reshape(shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(target)


def main(arguments: Sequence[str]) -> int:
    """Write the file; 1 for a shape or place that cannot be used."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("shape", nargs="?", default="released:4")
    parser.add_argument("--weights", choices=WEIGHTS, default="q4_k_m")
    options = parser.parse_args(arguments)
    try:
        write(options.file, named_shape(options.shape).text, options.weights)
    except (SfumatoError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    size = options.file.stat().st_size
    sys.stdout.write(f"{options.file}: {options.shape}, {options.weights}, {size / 1e9:.1f} GB\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
