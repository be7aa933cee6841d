"""Write a checkpoint of a named shape with random weights, which sfumato and transformers load.

Usage: python benchmarks/random_checkpoint.py DIR SHAPE [--nvfp4 [--int8-embedding]]

SHAPE is small, released, or released:4 for 4 of its layers. The weights are those of
`sfumato bench --shape SHAPE`, in memory one tensor at a time, 2 GB at most. The folder takes 8 GB
for released:4, 51 GB for released. With --nvfp4 it is as `sfumato quantize` leaves it, 3 and 15 GB,
and takes no source and no hour: the codes are cut from one quantised stretch of normal draws.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from sfumato.benchmark.shapes import RandomWeights, default_dtype, named_shape
from sfumato.config.generation import GenerationConfig
from sfumato.config.model import ModelConfig
from sfumato.config.quantisation import FIELD, FILE
from sfumato.config.write import to_json
from sfumato.errors import InputError, SfumatoError
from sfumato.quant.int8 import quantise_rows
from sfumato.quant.nvfp4 import FOUR_OVER_SIX, GROUP, quantise
from sfumato.weights.disk import write_json
from sfumato.weights.export import MAX_SHARD_BYTES, export_tensors
from sfumato.weights.files import INDEX
from sfumato.weights.quantise_plan import (
    Job,
    choose,
    cut_shards,
    description,
    kept_modules,
    plan_jobs,
)
from sfumato.weights.safetensors_reader import TensorEntry
from sfumato.weights.safetensors_writer import write_safetensors

_GROUPS = 1_048_583  # a prime: rows cut from a ring of this many groups never repeat
_CODES = {torch.bfloat16: "BF16", torch.float32: "F32"}


class _RandomCodes:
    """NVFP4 matrices cut one after the other from a ring of quantised normal draws."""

    def __init__(self, groups: int) -> None:
        drawn = torch.randn(groups, GROUP, generator=torch.Generator().manual_seed(0))
        ring = quantise(drawn, FOUR_OVER_SIX)
        self._codes = ring.packed.view(groups, -1)
        self._scales = ring.scale.view(torch.uint8).view(groups, -1)
        self._tensor_scale = ring.tensor_scale
        self._start = 0

    def matrix(self, job: Job) -> tuple[Tensor, Tensor, Tensor]:
        """Codes, group scales and tensor scale of the job's matrix, of variance 1 / columns."""
        codes, scales, _ = job.written
        count = math.prod(scales.shape)
        packed = self._cut(self._codes, count).view(codes.shape)
        bits = self._cut(self._scales, count).view(scales.shape)
        self._start += count
        columns = GROUP * scales.shape[-1]
        return packed, bits.view(torch.float8_e4m3fn), self._tensor_scale / columns**0.5

    def _cut(self, ring: Tensor, count: int) -> Tensor:
        start = self._start % len(ring)
        turns = (start + count) // len(ring) + 1
        return torch.cat([ring[start:], *[ring] * (turns - 1)])[:count]


def write_nvfp4(
    config: ModelConfig, weights: RandomWeights, folder: Path, *, int8_embedding: bool = False
) -> None:
    """What quantising random weights would write, without the weights. Raises SfumatoError."""
    if folder.exists():
        raise InputError(f"{folder}: exists already", hint="choose another folder")
    aside = folder.with_name(f".{folder.name}.part")
    aside.mkdir(parents=True)
    expected = {name: tuple(tensor.shape) for name, tensor in weights.shapes.items()}
    code, size = _CODES[weights.dtype], weights.dtype.itemsize
    entries = {
        name: TensorEntry(name, code, shape, 0, size * math.prod(shape))
        for name, shape in expected.items()
    }
    chosen = choose(expected, ())
    names = {name: name for name in expected}
    jobs = plan_jobs(expected, names, entries, chosen, int8_embedding=int8_embedding)
    shards = cut_shards(jobs, MAX_SHARD_BYTES)
    codes = _RandomCodes(min(_GROUPS, max(map(math.prod, expected.values())) // GROUP + 1))
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        written = [one for job in shard for one in job.written]
        write_safetensors(aside / file, written, _tensors(shard, weights, codes))
        weight_map |= {one.name: file for one in written}
    total = sum(job.size for job in jobs)
    write_json(aside / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    kept = kept_modules(expected, chosen, int8_embedding=int8_embedding)
    field, beside = description(kept, int8_embedding=int8_embedding)
    write_json(aside / "config.json", to_json(config) | {FIELD: field})
    write_json(aside / FILE, beside)
    write_json(aside / "generation_config.json", GenerationConfig().to_json())
    aside.rename(folder)


def _tensors(jobs: Sequence[Job], weights: RandomWeights, codes: _RandomCodes) -> Iterator[Tensor]:
    for job in jobs:
        if job.quantised:
            yield from codes.matrix(job)
        elif job.int8:
            table = quantise_rows(weights.tensor(job.target))
            yield from (table.codes, table.scale)
        else:
            yield weights.tensor(job.target)


def main(arguments: list[str]) -> int:
    """Write the checkpoint; 1 for what failed, 2 for other arguments."""
    options = arguments[2:]
    nvfp4, int8_embedding = "--nvfp4" in options, "--int8-embedding" in options
    wrong = len(options) != nvfp4 + int8_embedding or (int8_embedding and not nvfp4)
    if len(arguments) < 2 or wrong or arguments[0].startswith("-"):
        sys.stderr.write(f"{__doc__}\n")
        return 2
    folder, shape = Path(arguments[0]), arguments[1]
    try:
        config = named_shape(shape)
        weights = RandomWeights(config, default_dtype(shape))
        if nvfp4:
            write_nvfp4(config, weights, folder, int8_embedding=int8_embedding)
            return 0
        export_tensors(
            weights.shapes,
            weights.tensor,
            config,
            folder,
            dtype=weights.dtype,
            generation=GenerationConfig(),
        )
    except SfumatoError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
