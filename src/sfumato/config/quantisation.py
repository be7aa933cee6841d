"""What a checkpoint's configuration says of its NVFP4 tensors, in both published dialects.

ModelOpt (NVIDIA) writes `hf_quant_config.json` and, in later releases, the same once more as
`quantization_config` in config.json; compressed-tensors (vLLM, Red Hat) writes the latter alone.
Everything else, and every field nobody here has heard of, is refused by name.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sfumato.config.checkpoint_file import is_there
from sfumato.config.fields import Fields, short
from sfumato.config.json_file import read_json
from sfumato.errors import ConfigError

FIELD = "quantization_config"
FILE = "hf_quant_config.json"
GROUP_SIZE = 16
PACKED = "nvfp4-pack-quantized"
ALGORITHMS = ("NVFP4", "W4A16_NVFP4")  # with and without 4-bit activations: the weights are equal
MAX_KEPT = 1 << 16

# How the embedding in 8 bits, which is this project's own, is told in ModelOpt's two files.
INT8_GROUP: Mapping[str, Any] = {
    "weights": {
        "dynamic": False,
        "num_bits": 8,
        "type": "int",
        "strategy": "channel",
        "symmetric": True,
    },
    "targets": ["Embedding"],
}
INT8_LAYERS: Mapping[str, Any] = {"model.decoder.embed_tokens": {"quant_algo": "W8A16"}}

Dialect = Literal["modelopt", "compressed-tensors"]
# What compressed-tensors notes about how scales were found: the scales are in the file.
_HISTORY = ("observer", "observer_kwargs", "zp_dtype")


@dataclass(frozen=True)
class Quantisation:
    """An NVFP4 checkpoint: whose names its tensors have, and which modules it keeps as they were.

    `kept` holds module names; ModelOpt's may have wildcards, and compressed-tensors' may be
    regular expressions (`re:...`). `kv_cache` tells that scales of an FP8 KV cache may be there,
    `int8_embedding` that the embedding table is in 8 bits with a scale for each row.
    """

    dialect: Dialect
    kept: tuple[str, ...]
    kv_cache: bool = False
    int8_embedding: bool = False

    def keeps(self) -> Callable[[str], bool]:
        """A test whether a module, by the name it has in the files, is listed as kept.

        A stranger's regular expression can run for years, so those are not asked.
        """
        named = [entry for entry in self.kept if not entry.startswith("re:")]
        exact = {entry for entry in named if not set(entry) & set("*?[")}
        starts = tuple(e[:-1] for e in named if e[-1:] == "*" and not set(e[:-1]) & set("*?["))
        known = exact | {start + "*" for start in starts}
        rest = [re.compile(fnmatch.translate(entry)) for entry in named if entry not in known]

        def kept(module: str) -> bool:
            listed = module in exact or module.startswith(starts)
            return listed or any(pattern.match(module) for pattern in rest)

        return kept


def load_quantisation(folder: str | Path) -> Quantisation | None:
    """How the checkpoint in `folder` is quantised, None if it is not.

    Raises ConfigError: the files are missing, damaged, unsupported, or say different things.
    """
    folder = Path(folder)
    path, beside = folder / "config.json", folder / FILE
    value = read_json(path).get(FIELD)
    found = None if value is None else parse_quantisation(value, str(path))
    if not is_there(beside):
        return found
    other = _parse_file(read_json(beside), str(beside))
    if found is None:
        return other
    if found.dialect != other.dialect:
        raise ConfigError(f"{path}: {FIELD} is {found.dialect}'s, and {FILE} is {other.dialect}'s")
    if different := sorted(set(found.kept) ^ set(other.kept)):
        raise ConfigError(
            f"{folder}: config.json and {FILE} disagree whether {short(different[0])} is quantised",
            hint="fetch the checkpoint again",
        )
    if found.int8_embedding != other.int8_embedding:
        raise ConfigError(
            f"{folder}: config.json and {FILE} disagree whether the embedding is in 8 bits",
            hint="fetch the checkpoint again",
        )
    return found


def parse_quantisation(value: object, source: str) -> Quantisation:
    """The object under `quantization_config` in the file `source`. Raises ConfigError."""
    fields = Fields(value, source, FIELD)
    method = fields.string("quant_method", "")
    if method == "modelopt":
        return _parse_modelopt(fields)
    if method == "compressed-tensors":
        return _parse_compressed(fields)
    kind = method or next(
        (v for key in ("format", "quant_algo", "mode") if (v := fields.take(key, None))), None
    )
    raise unsupported(f"{source}: {FIELD}", short(kind))


def unsupported(where: str, kind: str) -> ConfigError:
    """The error for a format of quantised weights that is not read."""
    return ConfigError(
        f"{where}: quantised checkpoints of this kind are not supported yet (format {kind})",
        hint="NVFP4 of ModelOpt and of compressed-tensors is; or use the BF16 checkpoint",
    )


def _parse_file(data: Mapping[str, Any], source: str) -> Quantisation:
    """ModelOpt's file of its own."""
    top = Fields(data, source)
    top.ignore(("producer",))
    fields = top.child("quantization")
    top.finish()
    _check_algorithm(fields)
    fields.only("group_size", GROUP_SIZE, f"groups have {GROUP_SIZE} values")
    cache = fields.take("kv_cache_quant_algo", None)
    if cache not in (None, "FP8"):
        raise fields.unsupported("kv_cache_quant_algo", f"{short(cache)}: only FP8 or null is")
    kept = _names(fields, "exclude_modules")
    layers = fields.take("quantized_layers", {})
    if layers not in ({}, INT8_LAYERS):
        raise fields.unsupported("quantized_layers", f"only {INT8_LAYERS} is")
    fields.finish()
    return Quantisation("modelopt", kept, cache is not None, layers != {})


def _parse_modelopt(fields: Fields) -> Quantisation:
    _check_algorithm(fields)
    fields.only("group_size", GROUP_SIZE, f"groups have {GROUP_SIZE} values")
    fields.ignore(("producer",))
    int8_embedding = False
    for group in _groups(fields):
        if group.take("targets", None) == INT8_GROUP["targets"]:
            int8_embedding = True
            if (weights := group.take("weights", None)) != INT8_GROUP["weights"]:
                raise group.unsupported("weights", f"of embeddings {short(weights)} is not")
        else:
            _check_weights(group.child("weights"))
        group.ignore(("input_activations",))
        group.finish()
    cache = _kv_cache(fields)
    kept = _names(fields, "ignore")
    fields.finish()
    return Quantisation("modelopt", kept, cache, int8_embedding)


def _parse_compressed(fields: Fields) -> Quantisation:
    if (kind := fields.take("format", None)) != PACKED:
        raise unsupported(f"{fields.source}: {fields.path('format')}", short(kind))
    groups = _groups(fields)
    if not groups:
        raise fields.error("config_groups", "names no tensors")
    for group in groups:
        _check_weights(group.child("weights"))
        group.only("format", PACKED, f"all groups are {PACKED}")
        group.ignore(("input_activations", "targets"))
        if group.take("output_activations", None) is not None:
            raise group.unsupported("output_activations", "outputs are not quantised")
        group.finish()
    fields.only("quantization_status", "compressed", "its tensors must be compressed")
    for name in ("sparsity_config", "transform_config", "moe_sparsity_config"):
        if fields.take(name, {}) != {}:
            raise fields.unsupported(name, "weights are read as they are stored")
    fields.ignore(("global_compression_ratio", "version"))
    cache = _kv_cache(fields)
    kept = _names(fields, "ignore")
    fields.finish()
    return Quantisation("compressed-tensors", kept, cache)


def _check_algorithm(fields: Fields) -> None:
    algorithm = fields.take("quant_algo", None)
    if algorithm not in ALGORITHMS:
        raise unsupported(f"{fields.source}: {fields.path('quant_algo')}", short(algorithm))


def _check_weights(weights: Fields) -> None:
    """A description of the weights that can only mean NVFP4."""
    weights.only("num_bits", 4, "NVFP4 has 4 bits")
    weights.only("type", "float", "NVFP4 is a float")
    weights.only("group_size", GROUP_SIZE, f"groups have {GROUP_SIZE} values")
    weights.only("dynamic", False, "weights have fixed scales")
    weights.only("symmetric", True, "there are no zero points")
    weights.only("strategy", "tensor_group", "a group has a scale, and a tensor")
    weights.only("scale_dtype", "torch.float8_e4m3fn", "the scale of a group is E4M3")
    for name in ("actorder", "block_structure"):
        if weights.take(name, None) is not None:
            raise weights.unsupported(name, "values are stored in order")
    weights.ignore(_HISTORY)
    weights.finish()


def _groups(fields: Fields) -> list[Fields]:
    groups = fields.child("config_groups", {})
    return [groups.child(name) for name in groups.names()]


def _kv_cache(fields: Fields) -> bool:
    """Whether scales of an FP8 KV cache may be among the tensors; here it keeps its dtype."""
    if not fields.has("kv_cache_scheme"):
        fields.ignore(("kv_cache_scheme",))
        return False
    scheme = fields.child("kv_cache_scheme")
    scheme.only("num_bits", 8, "a quantised KV cache is FP8")
    scheme.only("type", "float", "a quantised KV cache is FP8")
    return True


def _names(fields: Fields, name: str) -> tuple[str, ...]:
    value = fields.take(name, [])
    if not isinstance(value, list) or any(not isinstance(entry, str) for entry in value):
        raise fields.error(name, "must be a list of module names")
    if len(value) > MAX_KEPT or "" in value:
        raise fields.error(name, f"must hold at most {MAX_KEPT:,} names, none of them empty")
    return tuple(value)
