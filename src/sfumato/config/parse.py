"""config.json of a Hugging Face checkpoint to `ModelConfig`, and back.

Both spellings of the full-attention layers are read: `per_layer_config` (what transformers 5.23
saves) and `global_head_dim` with `num_global_key_value_heads` (older files). What the model cannot
compute as written is refused by name; so is every field nobody here has heard of. How the tensors
are stored (NVFP4) is `quantisation`'s to read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

from sfumato.config.fields import Fields, short
from sfumato.config.json_file import read_json
from sfumato.config.layers import ACTIVATION, MAX_HEAD_DIM, MAX_HEADS, parse_layers
from sfumato.config.model import LayerKind, ModelConfig, RopeConfig, TextConfig, VisionConfig
from sfumato.config.quantisation import FIELD, load_quantisation, parse_quantisation, unsupported
from sfumato.errors import ConfigError

Dtype = Literal["bfloat16", "float32", "float16"]

MAX_WIDTH = 1 << 20
MAX_VOCABULARY = 1 << 24
MAX_LAYERS = 1024
MAX_EXPERTS = 1 << 16

# Fields transformers writes (or once wrote) that say nothing about what is computed here.
_STANDARD = (
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_commit_hash",
    "_experts_implementation",
    "_name_or_path",
    "attn_implementation",
    "chunk_size_feed_forward",
    "experts_implementation",
    "id2label",
    "initializer_range",
    "is_encoder_decoder",
    "label2id",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "output_hidden_states",
    "problem_type",
    "return_dict",
    "tie_last_hidden_states",
    "transformers_version",
    "use_cache",
)
# Ids of kinds of input that DiffusionGemma shares its vocabulary with, and copies of other fields:
# where generation stops is generation_config.json's to say.
_TOP_HARMLESS = (
    "audio_token_id",
    "boa_token_id",
    "bos_token_id",
    "eoa_token_id",
    "eoa_token_index",
    "eos_token_id",
    "pad_token_id",
    "video_token_id",
    "vision_soft_tokens_per_image",
)
_TEXT_HARMLESS = ("vocab_size_per_layer_input", "use_double_wide_mlp")
_VISION_HARMLESS = ("default_output_length", "global_head_dim", "max_position_embeddings")
_QUANTISED = (FIELD, "compression_config", "quantization")
_DEFAULT_ROPE = {
    "sliding_attention": RopeConfig(theta=1e4),
    "full_attention": RopeConfig(theta=1e6, partial_rotary_factor=0.25, kind="proportional"),
}


def load_config(folder: str | Path) -> ModelConfig:
    """The configuration of the checkpoint in `folder`.

    How its tensors are stored is not part of it: `load_quantisation` says that, and is checked
    here. Raises ConfigError: config.json is missing, damaged, contradictory or unsupported.
    """
    path = Path(folder) / "config.json"
    config = parse_config(read_json(path), source=str(path))
    load_quantisation(folder)
    return config


def parse_config(data: Mapping[str, Any], source: str = "config.json") -> ModelConfig:
    """The configuration in the JSON object `data`; errors call its file `source`."""
    top = Fields(data, source)
    if (kind := top.string("model_type")) != "diffusion_gemma":
        raise ConfigError(
            f"{source}: model_type is {short(kind)}, not 'diffusion_gemma'",
            hint="sfumato runs DiffusionGemma checkpoints only",
        )
    if top.has(FIELD):
        parse_quantisation(top.take(FIELD), source)
    _refuse_quantised(top)
    architectures = top.take("architectures", ["DiffusionGemmaForBlockDiffusion"])
    if architectures != ["DiffusionGemmaForBlockDiffusion"]:
        raise top.unsupported("architectures", short(architectures))
    top.only("tie_word_embeddings", True, "embeddings are tied to the head")
    if top.take("audio_config", None) is not None:
        raise top.unsupported("audio_config", "DiffusionGemma hears nothing")
    text = _parse_text(top.child("text_config"))
    vision = _parse_vision(top.child("vision_config")) if top.has("vision_config") else None
    top.ignore((*_STANDARD, *_TOP_HARMLESS, "vision_config"))
    dtype = _dtype(top)
    width = top.integer("self_conditioning_size", text.intermediate_size)
    if width != text.intermediate_size:
        raise top.unsupported("self_conditioning_size", "it must equal intermediate_size")
    canvas_length = top.integer("canvas_length", 256)
    ids = {
        name: top.optional_integer(name, default)
        for name, default in (
            ("image_token_id", 258_880),
            ("boi_token_id", 255_999),
            ("eoi_token_id", 258_882),
        )
    }
    top.finish()
    try:
        return ModelConfig(
            text=text, vision=vision, canvas_length=canvas_length, dtype=dtype, **ids
        )
    except ConfigError as problem:
        raise ConfigError(f"{source}: {problem.message}", hint=problem.hint) from None


def _parse_text(text: Fields) -> TextConfig:
    text.only("model_type", "diffusion_gemma_text", "not DiffusionGemma's text stack")
    _refuse_text_variants(text)
    count = text.integer("num_hidden_layers", high=MAX_LAYERS)
    heads = text.integer("num_attention_heads", high=MAX_HEADS)
    layers = parse_layers(text, count, heads)
    rope = _parse_rope(text, {layer.kind for layer in layers})
    experts = text.integer("num_experts", high=MAX_EXPERTS)
    top_k = text.integer("top_k_experts", high=MAX_EXPERTS)
    if top_k > experts:
        raise text.error("top_k_experts", f"is {top_k}, more than the {experts} experts there are")
    vocab_size = text.integer("vocab_size", high=MAX_VOCABULARY)
    pad = text.optional_integer("pad_token_id", 0)
    if pad is not None and pad >= vocab_size:
        raise text.error("pad_token_id", f"is {pad}, outside the vocabulary of {vocab_size}")
    text_config = TextConfig(
        vocab_size=vocab_size,
        hidden_size=text.integer("hidden_size", high=MAX_WIDTH),
        intermediate_size=text.integer("intermediate_size", high=MAX_WIDTH),
        num_attention_heads=heads,
        layers=layers,
        sliding_window=text.integer("sliding_window"),
        num_experts=experts,
        top_k_experts=top_k,
        moe_intermediate_size=text.integer("moe_intermediate_size", high=MAX_WIDTH),
        rope_sliding=rope["sliding_attention"],
        rope_full=rope["full_attention"],
        max_position_embeddings=text.integer("max_position_embeddings", 131_072),
        rms_norm_eps=text.number("rms_norm_eps", 1e-6, most=1.0),
        final_logit_softcapping=_softcap(text),
        bidirectional_images=_images_both_ways(text),
        pad_token_id=pad,
        bos_token_id=text.optional_integer("bos_token_id", 2),
        eos_token_id=text.token_ids("eos_token_id", (1,), vocabulary=vocab_size),
    )
    text.ignore((*_STANDARD, *_TEXT_HARMLESS, "dtype", "torch_dtype"))
    text.finish()
    return text_config


def _refuse_text_variants(text: Fields) -> None:
    """Gemma 4 has switches that DiffusionGemma leaves at one setting: only that one is built."""
    _refuse_quantised(text)
    text.only("hidden_activation", ACTIVATION, f"the activation is {ACTIVATION}")
    text.only("attention_k_eq_v", True, "full-attention layers have no v_proj")
    text.only("enable_moe_block", True, "every layer has experts")
    text.only("use_double_wide_mlp", False, "the dense MLP has one width")
    text.only("attention_bias", False, "projections have no bias")
    text.only("num_kv_shared_layers", 0, "no layers share keys and values")
    text.only("hidden_size_per_layer_input", 0, "there are no per-layer embeddings")
    text.only("tie_word_embeddings", True, "embeddings are tied to the head")
    _no_dropout(text)


def _no_dropout(fields: Fields) -> None:
    if fields.has("attention_dropout") and fields.number("attention_dropout", above=-1.0) != 0:
        raise fields.unsupported("attention_dropout", "there is no dropout")
    fields.ignore(("attention_dropout",))


def _softcap(text: Fields) -> float:
    if text.is_null("final_logit_softcapping"):
        raise text.unsupported("final_logit_softcapping", "logits are always softcapped")
    return text.number("final_logit_softcapping", 30.0)


def _images_both_ways(text: Fields) -> bool:
    """Whether an image's soft tokens see each other: "vision" or null; "all" is another model."""
    value = text.take("use_bidirectional_attention", None)
    if value not in (None, "vision"):
        raise text.unsupported(
            "use_bidirectional_attention", f'it may be "vision" or null (it is {short(value)})'
        )
    return value is not None


def _parse_rope(text: Fields, kinds: set[LayerKind]) -> dict[str, RopeConfig]:
    found = dict(_DEFAULT_ROPE)
    if not text.has("rope_parameters"):
        text.ignore(("rope_parameters",))
        return found
    rope = text.child("rope_parameters")
    for kind in found:
        if rope.has(kind):
            found[kind] = _rope_of_kind(rope.child(kind))
        elif kind in kinds:
            raise rope.error(kind, "is missing")
        rope.ignore((kind,))
    rope.finish()
    return found


def _rope_of_kind(fields: Fields) -> RopeConfig:
    kind = fields.string("rope_type", "default")
    if kind not in ("default", "proportional"):
        raise fields.unsupported("rope_type", f"{short(kind)}: only default and proportional are")
    theta = fields.number("rope_theta")
    partial = fields.number("partial_rotary_factor", 1.0, most=1.0)
    if kind == "default" and partial != 1.0:
        raise fields.unsupported("partial_rotary_factor", "rope_type default rotates all of a head")
    if fields.number("factor", 1.0) != 1.0:
        raise fields.unsupported("factor", "positions are not scaled")
    fields.finish()
    return RopeConfig(theta, partial, cast(Literal["default", "proportional"], kind))


def _parse_vision(vision: Fields) -> VisionConfig:
    vision.only("model_type", "gemma4_vision", "not the Gemma 4 vision tower")
    _refuse_quantised(vision)
    vision.only("hidden_activation", ACTIVATION, f"the activation is {ACTIVATION}")
    vision.only("attention_bias", False, "projections have no bias")
    _no_dropout(vision)
    heads = vision.integer("num_attention_heads", high=MAX_HEADS)
    shared = vision.integer("num_key_value_heads", high=MAX_HEADS)
    if heads % shared:
        raise vision.error("num_key_value_heads", f"is {shared}, which does not divide {heads}")
    head_dim = vision.integer("head_dim", high=MAX_HEAD_DIM)
    if head_dim % 4:
        raise vision.error("head_dim", f"must be a multiple of 4 for two axes, not {head_dim}")
    config = VisionConfig(
        hidden_size=vision.integer("hidden_size", high=MAX_WIDTH),
        intermediate_size=vision.integer("intermediate_size", high=MAX_WIDTH),
        num_hidden_layers=vision.integer("num_hidden_layers", high=MAX_LAYERS),
        num_attention_heads=heads,
        num_key_value_heads=shared,
        head_dim=head_dim,
        patch_size=vision.integer("patch_size", 16, high=1024),
        pooling_kernel_size=vision.integer("pooling_kernel_size", 3, high=64),
        position_embedding_size=vision.integer("position_embedding_size", 10_240, high=MAX_WIDTH),
        rms_norm_eps=vision.number("rms_norm_eps", 1e-6, most=1.0),
        rope_theta=_vision_theta(vision),
        standardize=vision.boolean("standardize", False),
        use_clipped_linears=vision.boolean("use_clipped_linears", False),
    )
    vision.ignore((*_STANDARD, *_VISION_HARMLESS, "architectures", "dtype", "torch_dtype"))
    vision.finish()
    return config


def _vision_theta(vision: Fields) -> float:
    """Older files call the two-axis rotation "default"; it is the same one."""
    if not vision.has("rope_parameters"):
        vision.ignore(("rope_parameters",))
        return 100.0
    rope = vision.child("rope_parameters")
    kind = rope.string("rope_type", "axial")
    if kind not in ("axial", "default"):
        raise rope.unsupported("rope_type", f"{short(kind)}: the tower's rotation is axial")
    theta = rope.number("rope_theta", 100.0)
    rope.finish()
    return theta


def _dtype(top: Fields) -> Dtype:
    """`dtype`, which older files call `torch_dtype`; both at once must agree."""
    names = [top.string(name) for name in ("dtype", "torch_dtype") if top.has(name)]
    top.ignore(("dtype", "torch_dtype"))
    if len(set(names)) > 1:
        raise top.error("dtype", f"is {short(names[0])} and torch_dtype {short(names[1])}")
    name = names[0] if names else "bfloat16"
    if name not in ("bfloat16", "float32", "float16"):
        raise top.unsupported("dtype", f"{short(name)}: bfloat16, float16 and float32 are")
    return cast(Dtype, name)


def _refuse_quantised(fields: Fields) -> None:
    for name in _QUANTISED:
        if fields.has(name):
            found = fields.take(name)
            kind = None
            if isinstance(found, dict):
                keys = ("format", "quant_algo", "quant_method", "mode")
                kind = next((found[key] for key in keys if found.get(key)), None)
            raise unsupported(f"{fields.source}: {fields.path(name)}", short(kind))
        fields.ignore((name,))
