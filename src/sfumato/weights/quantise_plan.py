"""What quantising a checkpoint will write: which matrices, under which names, in which files."""

from __future__ import annotations

import fnmatch
import importlib.metadata
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sfumato.config.quantisation import INT8_GROUP, INT8_LAYERS
from sfumato.errors import InputError
from sfumato.quant.nvfp4 import GROUP
from sfumato.weights.inventory import part_of
from sfumato.weights.names import EMBEDDING
from sfumato.weights.pieces import matrices_of
from sfumato.weights.safetensors_reader import TensorEntry
from sfumato.weights.safetensors_writer import Written

QUANTISED_PARTS = ("experts", "attention", "dense_mlp", "self_conditioning")
# Weights alone are quantised: nothing here has seen the activations an NVFP4 with `input_scale`
# would need. vLLM and ModelOpt know this kind under a name of its own.
ALGORITHM = "W4A16_NVFP4"
_SEEING = ("model.encoder.vision_tower*", "model.encoder.embed_vision*")
_FUSED = re.compile(r"\.(?:[qkv]_proj|gate_proj|up_proj)$")


@dataclass(frozen=True)
class Job:
    """One step of the work: a tensor copied, one matrix put into NVFP4, or the embedding in 8 bits.

    `target` is the network's name of the tensor it is from, `source` the file's. A matrix is the
    one at `index` of the tensor seen as [count, N, K], and `module` its own name.
    """

    target: str
    source: str
    written: tuple[Written, ...]
    module: str = ""
    index: int = 0
    count: int = 1
    int8: bool = False

    @property
    def quantised(self) -> bool:
        """Whether it is put into NVFP4."""
        return bool(self.module)

    @property
    def size(self) -> int:
        """Bytes it writes."""
        return sum(one.size for one in self.written)

    @property
    def family(self) -> str:
        """What shares its tensor scale: engines multiply q, k and v as one matrix, gate and up too.

        vLLM takes the largest of their tensor scales for all of them.
        """
        return _FUSED.sub(lambda m: ".qkv" if m[0][2] == "_" else ".gate_up", self.module)


def choose(expected: Mapping[str, tuple[int, ...]], keep: Sequence[str]) -> set[str]:
    """The network's tensors to quantise: the text matrices that no pattern of `keep` names.

    A pattern is a shell's (`*`, `?`, `[..]`) and is held against names of tensors and of the
    modules they are in. Raises InputError for one that names nothing, for rows that are no
    multiple of 16, and where only a part of what engines join into one matrix would be kept.
    """
    whole = [n for n, s in expected.items() if part_of(n) in QUANTISED_PARTS and len(s) >= 2]
    kept: set[str] = set()
    for pattern in keep:
        named = [name for name in whole if _is_named(name, pattern)]
        if not named:
            raise InputError(
                f"--keep {pattern!r} names no matrix that would be quantised",
                hint="as '*.self_attn.*' or 'model.decoder.layers.0.*'",
            )
        kept.update(named)
    chosen = set(whole) - kept
    for name in whole:
        if name in chosen and expected[name][-1] % GROUP:
            raise InputError(
                f"{name} has rows of {expected[name][-1]} values, no multiple of {GROUP}",
                hint=f"keep it with --keep '*{name[name.rindex('.layers.') + 1 :].split('.')[2]}*'"
                if ".layers." in name
                else "keep it with --keep",
            )
    joined: dict[str, str] = {}
    for name in whole:
        other = joined.setdefault(_joined(name), name)
        if (other in chosen) != (name in chosen):
            raise InputError(
                f"--keep leaves {name} and {other} different, which engines join",
                hint="keep both or neither",
            )
    return chosen


def _is_named(name: str, pattern: str) -> bool:
    parts = name.split(".")
    above = (".".join(parts[:count]) for count in range(1, len(parts) + 1))
    return any(fnmatch.fnmatchcase(form, pattern) for form in above)


def _joined(name: str) -> str:
    """Tensors that must be quantised together have this in common."""
    if ".experts." in name:
        return name.rpartition(".")[0]
    return Job(name, "", (), module=name.removesuffix(".weight")).family


def plan_jobs(
    expected: Mapping[str, tuple[int, ...]],
    sources: Mapping[str, str],
    entries: Mapping[str, TensorEntry],
    chosen: set[str],
    *,
    int8_embedding: bool = False,
) -> list[Job]:
    """The work in the order of the network's names; experts in their own order."""
    jobs: list[Job] = []
    for name in sorted(expected):
        source = sources[name]
        if name == EMBEDDING and int8_embedding:
            jobs.append(Job(name, source, _in_8_bits(name, expected[name]), int8=True))
            continue
        if name not in chosen:
            entry = entries[source]
            size = entry.stop - entry.start
            jobs.append(Job(name, source, (Written(name, entry.dtype, entry.shape, size),)))
            continue
        matrices = list(matrices_of(name, expected[name]))
        for index, (module, shape) in enumerate(matrices):
            jobs.append(Job(name, source, _written(module, shape), module, index, len(matrices)))
    return jobs


def _in_8_bits(name: str, shape: tuple[int, ...]) -> tuple[Written, ...]:
    N, K = shape
    return (
        Written(name, "I8", (N, K), N * K),
        Written(f"{name}_scale", "F32", (N, 1), 4 * N),
    )


def _written(module: str, shape: tuple[int, int]) -> tuple[Written, ...]:
    N, K = shape
    groups = K // GROUP
    return (
        Written(f"{module}.weight", "U8", (N, K // 2), N * K // 2),
        Written(f"{module}.weight_scale", "F8_E4M3", (N, groups), N * groups),
        Written(f"{module}.weight_scale_2", "F32", (), 4),
    )


def cut_shards(jobs: Sequence[Job], max_shard_bytes: int) -> list[list[Job]]:
    """Jobs in order, cut into files of at most `max_shard_bytes` (or of one larger job)."""
    shards: list[list[Job]] = [[]]
    held = 0
    for job in jobs:
        if shards[-1] and held + job.size > max_shard_bytes:
            shards.append([])
            held = 0
        shards[-1].append(job)
        held += job.size
    return shards


def kept_modules(
    expected: Mapping[str, tuple[int, ...]], chosen: set[str], *, int8_embedding: bool = False
) -> list[str]:
    """The modules with a matrix that is not quantised, as `exclude_modules` lists them."""
    kept = ["lm_head"]
    for name, shape in expected.items():
        if name == EMBEDDING and int8_embedding:
            continue
        if name in chosen or math.prod(shape) == 0 or part_of(name) == "vision":
            continue
        if ".experts." in name:
            kept.append(name.rpartition(".")[0] + "*")
        elif len(shape) == 2 and name.endswith(".weight"):
            kept.append(name.removesuffix(".weight"))
    if any(part_of(name) == "vision" for name in expected):
        kept += _SEEING
    return sorted(set(kept))


def description(
    kept: Sequence[str], *, int8_embedding: bool = False
) -> tuple[dict[str, Any], dict[str, Any]]:
    """`quantization_config` of config.json, and hf_quant_config.json, in ModelOpt's words."""
    producer = {"name": "sfumato", "version": importlib.metadata.version("sfumato")}
    weights = {"dynamic": False, "num_bits": 4, "type": "float", "group_size": GROUP}
    groups: dict[str, Any] = {"group_0": {"weights": weights, "targets": ["Linear"]}}
    if int8_embedding:
        groups["group_1"] = dict(INT8_GROUP)
    field = {
        "quant_method": "modelopt",
        "quant_algo": ALGORITHM,
        "config_groups": groups,
        "ignore": list(kept),
        "producer": producer,
    }
    beside = {
        "producer": producer,
        "quantization": {
            "quant_algo": ALGORITHM,
            "kv_cache_quant_algo": None,
            "group_size": GROUP,
            "exclude_modules": list(kept),
        }
        | ({"quantized_layers": dict(INT8_LAYERS)} if int8_embedding else {}),
    }
    return field, beside
