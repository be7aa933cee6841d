"""A linear map without bias that a kernel may serve."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

Kernel = Callable[[Tensor], Tensor]


class Linear(nn.Linear):
    """`nn.Linear` without bias; `kernel`, if set, computes the same in its place."""

    kernel: Kernel | None = None

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` [..., inputs] to [..., outputs]."""
        return super().forward(x) if self.kernel is None else self.kernel(x)
