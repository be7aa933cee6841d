"""The layers of `text_config`: their kinds, and the attention shape of each, in both spellings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from sfumato.config.fields import Fields, short
from sfumato.config.model import LayerConfig, LayerKind

ACTIVATION = "gelu_pytorch_tanh"
MAX_HEADS = 4096
MAX_HEAD_DIM = 8192
DEFAULT_GLOBAL_HEAD_DIM = 512  # what the reference assumes where neither spelling gives it
_KINDS = ("sliding_attention", "full_attention")
_PERIOD = 6  # without `layer_types`: five sliding layers, then a full one


def parse_layers(text: Fields, count: int, heads: int) -> tuple[LayerConfig, ...]:
    """The `count` layers, each with a head width and a number of key-value heads.

    `per_layer_config` wins where both spellings are there; they must then agree. Layers of one
    kind share a rotary embedding, so they must be alike.
    """
    kinds = _layer_kinds(text, count)
    base = {
        "head_dim": text.integer("head_dim", high=MAX_HEAD_DIM),
        "num_key_value_heads": text.integer("num_key_value_heads", high=MAX_HEADS),
    }
    full = {
        "head_dim": text.optional_integer("global_head_dim", low=1, high=MAX_HEAD_DIM),
        "num_key_value_heads": text.optional_integer(
            "num_global_key_value_heads", low=1, high=MAX_HEADS
        ),
    }
    if text.has("per_layer_config"):
        shapes = _per_layer(text.child("per_layer_config"), base, count)
        _check_agreement(text, kinds, shapes, full)
    else:
        text.ignore(("per_layer_config",))
        wide = {
            "head_dim": full["head_dim"] or DEFAULT_GLOBAL_HEAD_DIM,
            "num_key_value_heads": full["num_key_value_heads"] or base["num_key_value_heads"],
        }
        shapes = [wide if kind == "full_attention" else base for kind in kinds]
    layers = tuple(LayerConfig(kind, **shape) for kind, shape in zip(kinds, shapes, strict=True))
    _check_shapes(text, layers, heads)
    return layers


def _layer_kinds(text: Fields, count: int) -> list[LayerKind]:
    default = [_KINDS[(index + 1) % _PERIOD == 0] for index in range(count)]
    default[-1] = "full_attention"
    kinds: Any = text.take("layer_types", default)
    if not isinstance(kinds, list):
        raise text.error("layer_types", f"must be a list, not {short(kinds)}")
    if len(kinds) != count:
        raise text.error("layer_types", f"has {len(kinds)} entries for {count} layers")
    for index, kind in enumerate(kinds):
        if kind not in _KINDS:
            raise text.error(f"layer_types[{index}]", f"is {short(kind)}, not one of {_KINDS}")
    if kinds[-1] != "full_attention":
        # The reference would quietly make it a full layer, whose weights no such file has.
        raise text.error("layer_types", "must end with full_attention")
    return cast(list[LayerKind], kinds)


def _per_layer(fields: Fields, base: dict[str, int], count: int) -> list[dict[str, int]]:
    names = _layer_names(fields, count)
    shapes = []
    for index in range(count):
        shape = dict(base)
        if index in names:
            layer = fields.child(names[index])
            shape["head_dim"] = layer.integer("head_dim", base["head_dim"], high=MAX_HEAD_DIM)
            shape["num_key_value_heads"] = layer.integer(
                "num_key_value_heads", base["num_key_value_heads"], high=MAX_HEADS
            )
            if layer.take("skip", []) != []:
                raise layer.unsupported("skip", "every layer has all its parts")
            layer.finish()
        shapes.append(shape)
    fields.finish()
    return shapes


def _layer_names(fields: Fields, count: int) -> dict[int, str]:
    """What the file calls each layer: its index, which transformers pads with zeros to sort."""
    names: dict[int, str] = {}
    for name in fields.names():
        if not (name.isascii() and name.isdigit() and len(name) <= 8 and int(name) < count):
            raise fields.error(name, f"is no layer: there are 0 to {count - 1}")
        other = names.setdefault(int(name), name)
        if other != name:
            raise fields.error(name, f"is the same layer as {other}")
    return names


def _check_agreement(
    text: Fields,
    kinds: Sequence[LayerKind],
    shapes: Sequence[dict[str, int]],
    full: dict[str, int | None],
) -> None:
    names = {"head_dim": "global_head_dim", "num_key_value_heads": "num_global_key_value_heads"}
    for index, (kind, shape) in enumerate(zip(kinds, shapes, strict=True)):
        for field, old_name in names.items():
            said = full[field]
            if kind == "full_attention" and said is not None and said != shape[field]:
                raise text.error(
                    old_name,
                    f"is {said}, but per_layer_config gives layer {index} {field} {shape[field]}",
                )


def _check_shapes(text: Fields, layers: Sequence[LayerConfig], heads: int) -> None:
    first: dict[str, tuple[int, LayerConfig]] = {}
    for index, layer in enumerate(layers):
        where, alike = first.setdefault(layer.kind, (index, layer))
        if layer != alike:
            raise text.error(
                "per_layer_config",
                f"makes layers {where} and {index} differ, though both are {layer.kind}",
            )
        if layer.head_dim % 2:
            raise text.error("head_dim", f"of layer {index} is odd: {layer.head_dim}")
        if heads % layer.num_key_value_heads:
            raise text.error(
                "num_attention_heads",
                f"is {heads}, not a multiple of the {layer.num_key_value_heads} key-value heads "
                f"of layer {index}",
            )
