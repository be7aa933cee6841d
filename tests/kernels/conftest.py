"""Every test of this folder runs once for each instruction set that the processor has."""

from __future__ import annotations

import pytest

from sfumato.ops.kernels import Kernels, instruction_sets, reason_for_none

USABLE: list[Kernels | None] = [Kernels(name) for name, usable in instruction_sets() if usable]


@pytest.fixture(
    params=USABLE or [None], ids=lambda one: one.name if one else "none", scope="session"
)
def kernels(request: pytest.FixtureRequest) -> Kernels:
    """One instruction set's kernels."""
    if request.param is None:
        pytest.skip(f"no kernels: {reason_for_none()}")
    chosen: Kernels = request.param
    return chosen
