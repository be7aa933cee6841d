"""The vocabulary head of a denoising step, in one pass that never holds the logits.

For each row of hidden states x [R, D] with the embedding table [V, D] and a temperature t > 0:

    s = cap * tanh(x . table / cap) / t                 scores, [R, V], fp32
    argmax = the first id with the largest s
    entropy = of softmax(s), in nats
    sample = the id at which softmax(s)'s distribution function first exceeds u, for a u in [0, 1)
    soft = factor * sum of softmax(s) over the table's rows
    log_probabilities = log softmax(s), of the ids that are asked for

`soft` leaves out terms below e^-10 of a row's largest. Kernel and reference agree: entropy within
1e-4, argmax and sample equal unless two candidates differ by less than their rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.errors import InputError
from sfumato.ops.kernels import Kernels, give
from sfumato.ops.linear import ACTIVATIONS
from sfumato.ops.weight import Weight

GROUP = 64
FLOOR = -10.0


@dataclass(frozen=True, eq=False)
class Beliefs:
    """What a pass over the vocabulary found, by row.

    `maximum` and `log_sum` [R] (log of the sum of e^s) and `group_maximum` [V / 64 rounded up, R]
    are what `soft` needs to find the probable ids again without their logits.
    """

    argmax: Tensor
    sample: Tensor | None
    entropy: Tensor
    maximum: Tensor
    log_sum: Tensor
    group_maximum: Tensor

    def only(self, rows: Tensor) -> Beliefs:
        """Those of the `rows` (a mask [R]) alone."""
        sample = None if self.sample is None else self.sample[rows]
        own = (self.argmax[rows], sample, self.entropy[rows], self.maximum[rows])
        return Beliefs(*own, self.log_sum[rows], self.group_maximum[:, rows].contiguous())


def declines(x_dtype: torch.dtype, table: Weight) -> str | None:
    """Why no kernel serves this vocabulary, or None if one does."""
    if x_dtype not in ACTIVATIONS:
        return f"hidden states are {x_dtype}, not float32 or bfloat16"
    if table.device.type != "cpu":
        return f"the table is on {table.device}"
    if table.layout not in ("f32_rows", "bf16_rows", "i8_rows"):
        return f"the table lies in {table.layout}, and soft embeddings need its rows"
    return None


def head(
    x: Tensor,
    table: Weight,
    cap: float,
    temperatures: Tensor,
    uniforms: Tensor | None = None,
    kernels: Kernels | None = None,
) -> Beliefs:
    """One pass for `x` [R, D], `temperatures` fp32 [R] and `uniforms` fp64 [R] or None."""
    if kernels is None:
        return reference(x, table, cap, temperatures, uniforms)
    rows, groups = x.shape[0], -(-table.n // GROUP)
    found = Beliefs(
        argmax=torch.empty(rows, dtype=torch.int64),
        sample=None if uniforms is None else torch.empty(rows, dtype=torch.int64),
        entropy=torch.empty(rows),
        maximum=torch.empty(rows),
        log_sum=torch.empty(rows),
        group_maximum=torch.empty(groups, rows),
    )
    kernels.native.head(
        kernels.name,
        give(x.contiguous()),
        table.native(kernels),
        cap,
        give(temperatures.contiguous()),
        None if uniforms is None else give(uniforms),
        give(found.argmax),
        None if found.sample is None else give(found.sample),
        give(found.entropy),
        give(found.maximum),
        give(found.log_sum),
        give(found.group_maximum),
        kernels.threads,
    )
    return found


def soft(
    x: Tensor,
    table: Weight,
    cap: float,
    temperatures: Tensor,
    beliefs: Beliefs,
    factor: float,
    kernels: Kernels | None = None,
) -> Tensor:
    """Soft embeddings [R, D], in the dtype of `x`, of the beliefs that `head` found for `x`."""
    if kernels is None:
        return soft_reference(x, table, cap, temperatures, factor)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    kernels.native.soft(
        kernels.name,
        give(x.contiguous()),
        table.native(kernels),
        cap,
        give(temperatures.contiguous()),
        give(beliefs.maximum),
        give(beliefs.log_sum),
        give(beliefs.group_maximum),
        factor,
        give(out),
        kernels.threads,
    )
    return out


def log_probabilities(
    x: Tensor,
    table: Weight,
    cap: float,
    temperatures: Tensor,
    beliefs: Beliefs,
    ids: Tensor,
    kernels: Kernels | None = None,
) -> Tensor:
    """Of `ids` int64 [R, N], fp32 [R, N], for `beliefs` that `head` found for the same `x` [R, D].

    Only what is asked for is computed again. Raises InputError for an id that is not in the table.
    """
    check_ids(ids, table.n)
    if kernels is None:
        found = scores(x, table, cap, temperatures).gather(1, ids)
        return found - beliefs.log_sum[:, None]
    out = torch.empty(ids.shape)
    kernels.native.log_probabilities(
        kernels.name,
        give(x.contiguous()),
        table.native(kernels),
        cap,
        give(temperatures.contiguous()),
        give(beliefs.log_sum),
        give(ids.contiguous()),
        give(out),
        kernels.threads,
    )
    return out


def check_ids(ids: Tensor, vocab_size: int) -> None:
    """Raise InputError if one of `ids` is not in the vocabulary."""
    if ids.numel() and not (int(ids.min()) >= 0 and int(ids.max()) < vocab_size):
        raise InputError(f"ids must be from 0 to {vocab_size - 1}, the last of the vocabulary")


def logits(x: Tensor, table: Weight, cap: float, kernels: Kernels | None = None) -> Tensor:
    """Softcapped logits [R, V], fp32, written out: `scores` at a temperature of 1."""
    if kernels is None:
        return scores(x, table, cap, torch.ones(x.shape[0], device=x.device))
    out = torch.empty(x.shape[0], table.n)
    kernels.native.logits(
        kernels.name, give(x.contiguous()), table.native(kernels), cap, give(out), kernels.threads
    )
    return out


def gather(
    written: Tensor,
    table: Weight,
    factor: float,
    dtype: torch.dtype,
    kernels: Kernels | None = None,
) -> Tensor:
    """Soft embeddings [R, D] in `dtype`, of logits [R, V] that are `written` out.

    As with `soft`, terms below e^-10 of a row's largest are left out.
    """
    if kernels is None:
        return _mixed(written.float(), table, factor).to(dtype)
    out = torch.empty(written.shape[0], table.k, dtype=dtype)
    kernels.native.gather(
        kernels.name,
        give(written.float().contiguous()),
        table.native(kernels),
        factor,
        give(out),
        kernels.threads,
    )
    return out


def _mixed(found: Tensor, table: Weight, factor: float) -> Tensor:
    """The mix of the table's rows by softmax of scores, probable ones alone."""
    shares = torch.softmax(found, dim=-1)
    shares = shares.masked_fill(found - found.amax(-1, keepdim=True) < FLOOR, 0.0)
    return shares @ table.dense()[0].float() * factor


def scores(
    x: Tensor, table: Weight, cap: float, temperatures: Tensor, *, narrow: bool = False
) -> Tensor:
    """The scores s [R, V], fp32, written out; with `narrow` of hidden states in 8 bits."""
    logits = table.seen(x, narrow=narrow).float() @ table.dense()[0].float().t()
    return torch.tanh(logits / cap) * cap / temperatures[:, None]


def reference(
    x: Tensor,
    table: Weight,
    cap: float,
    temperatures: Tensor,
    uniforms: Tensor | None,
    *,
    narrow: bool = False,
) -> Beliefs:
    """`head` in torch."""
    found = scores(x, table, cap, temperatures, narrow=narrow)
    log_sum = found.double().logsumexp(-1)
    logs = found.double() - log_sum[:, None]
    shares = logs.exp()
    sample = None
    if uniforms is not None:
        whole = shares.cumsum(-1)
        sample = torch.searchsorted(whole, (uniforms * whole[:, -1])[:, None], right=True)
        sample = sample.squeeze(1).clamp(max=table.n - 1)
    short = -table.n % GROUP
    padded = torch.cat([found, found.new_full((found.shape[0], short), -torch.inf)], dim=1)
    return Beliefs(
        argmax=found.argmax(-1),
        sample=sample,
        entropy=-(shares * logs).sum(-1).float(),
        maximum=found.amax(-1),
        log_sum=log_sum.float(),
        group_maximum=padded.view(found.shape[0], -1, GROUP).amax(-1).t().contiguous(),
    )


def soft_reference(
    x: Tensor,
    table: Weight,
    cap: float,
    temperatures: Tensor,
    factor: float,
    *,
    narrow: bool = False,
) -> Tensor:
    """`soft` in torch."""
    found = scores(x, table, cap, temperatures, narrow=narrow)
    return _mixed(found, table, factor).to(x.dtype)
