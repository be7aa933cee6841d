"""What this machine can do at best, as torch reaches it: matrix products and reading memory.

These are measured ceilings, not the processor's own: a part that passes one has found a better way
than torch's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sfumato.benchmark.timing import Effort, seconds_of

# Square products of these sizes are tried until one takes longer than it is measured for.
_SIZES = (512, 1024, 2048, 4096)
# More than any processor's cache holds, so that it is memory that is read.
READ_BYTES = 1 << 29
LONGEST = 5.0  # seconds that one product or reading is repeated for, or eight times those asked for
_FLOATS = {"bfloat16": torch.bfloat16, "float32": torch.float32}
EIGHT_BITS = "8 bits"


@dataclass(frozen=True)
class Ceilings:
    """The best rates found with so many `threads`.

    `operations` a second of matrix products by number format, None where torch has none on this
    device (`reasons` says so); `read` bytes of memory a second.
    """

    threads: int
    operations: dict[str, float | None]
    read: float
    reasons: dict[str, str] = field(default_factory=dict)

    def best_for(self, dtype: torch.dtype) -> float | None:
        """Operations a second for weights of `dtype`: in it or in fp32, which holds them as well.

        A processor without arithmetic in 16 bits is the quicker one in fp32.
        """
        names = (str(dtype).removeprefix("torch."), "float32")
        rates = [rate for name in names if (rate := self.operations.get(name))]
        return max(rates, default=None)


def measure_ceilings(device: torch.device, effort: Effort) -> Ceilings:
    """Measure with torch's present number of threads, for a few times `effort.seconds`."""
    operations: dict[str, float | None] = {}
    reasons: dict[str, str] = {}
    forms: dict[str, list[Callable[[int], Callable[[], object]]]] = {
        name: [_float_product(dtype, device)] for name, dtype in _FLOATS.items()
    }
    forms[EIGHT_BITS] = [_packed_product(), _integer_product(device)]
    if device.type != "cpu":
        forms[EIGHT_BITS] = [_integer_product(device)]
    for name, makers in forms.items():
        rates = []
        for maker in makers:
            try:
                rates.append(_best_rate(maker, device, effort))
            except (RuntimeError, AttributeError) as problem:
                reasons[name] = (str(problem).splitlines() or [type(problem).__name__])[0][:160]
        operations[name] = max(rates, default=None)
        if rates:
            reasons.pop(name, None)
    read = _read_rate(device, effort)
    return Ceilings(torch.get_num_threads(), operations, read, reasons)


def _best_rate(
    maker: Callable[[int], Callable[[], object]], device: torch.device, effort: Effort
) -> float:
    """The best operations a second over growing sizes."""
    best = 0.0
    for size in _SIZES:
        product = maker(size)
        product()  # what is made once, at the first call
        seconds = min(_samples(product, device, effort))
        best = max(best, 2 * size**3 / seconds)
        if seconds > effort.seconds:
            break
    return best


def _samples(work: Callable[[], object], device: torch.device, effort: Effort) -> Iterator[float]:
    """Seconds of `work`, of which the least counts: twice is enough where it takes long.

    At the 10 GFLOP/s that torch makes of bf16 where the processor has none, the largest product
    takes 14.
    """
    spent, count, most = 0.0, 0, max(LONGEST, 8 * effort.seconds)
    while count < 2 or (
        spent < most and (count < effort.repeats or (spent < effort.seconds / 2 and count < 100))
    ):
        seconds = seconds_of(work, device)
        spent, count = spent + seconds, count + 1
        yield seconds


def _float_product(
    dtype: torch.dtype, device: torch.device
) -> Callable[[int], Callable[[], object]]:
    def make(size: int) -> Callable[[], object]:
        left, right = (torch.rand(size, size, device=device).to(dtype) for _ in range(2))
        return lambda: torch.mm(left, right.t())  # as weights lie: [outputs, inputs]

    return make


def _integer_product(device: torch.device) -> Callable[[int], Callable[[], object]]:
    def make(size: int) -> Callable[[], object]:
        left, right = (_bytes(size, torch.int8).to(device) for _ in range(2))
        return lambda: torch._int_mm(left, right.t())

    return make


def _packed_product() -> Callable[[int], Callable[[], object]]:
    """A product of bytes with weights that oneDNN has prepacked: far faster than `_int_mm`."""

    def make(size: int) -> Callable[[], object]:
        onednn = torch.ops.onednn
        packed = onednn.qlinear_prepack(_bytes(size, torch.int8), [size, size])
        rows, scales = _bytes(size, torch.uint8), torch.ones(size)
        zeros = torch.zeros(size, dtype=torch.int64)
        kind = torch.float32
        return lambda: onednn.qlinear_pointwise(
            rows, 1.0, 0, packed, scales, zeros, None, 1.0, 0, kind, "none", [], ""
        )

    return make


def _bytes(size: int, dtype: torch.dtype) -> Tensor:
    return torch.randint(0, 127, (size, size)).to(dtype)


def _read_rate(device: torch.device, effort: Effort) -> float:
    """Bytes a second of the quicker of two ways to read a long vector."""
    data = torch.ones(READ_BYTES // 4, device=device)  # zeros might share one page
    matrix = data.view(-1, 4096)
    vector = torch.ones(4096, device=device)
    ways: tuple[Callable[[], object], ...] = (data.sum, lambda: torch.mv(matrix, vector))
    rates = []
    for way in ways:
        way()
        rates.append(READ_BYTES / min(_samples(way, device, effort)))
    return max(rates)
