"""Diffusion against the autoregressive mode at the same weights: who is quicker, from where on.

Both are composed of measured medians. Encoding the prompt costs both the same and is left out.
Diffusion pays for whole canvases however short the answer is, the autoregressive mode for each
token: which wins depends on the answer's length and on the steps a canvas takes.
"""

from __future__ import annotations

from dataclasses import dataclass

ANSWERS = (8, 16, 32, 64, 128, 256, 512, 1024)
_CANVASES = 16  # how far "from what length on" is looked for


@dataclass(frozen=True)
class Costs:
    """Seconds of what the two modes consist of, for a batch of `rows`.

    `first` and `step` are whole denoising steps without and with self-conditioning, `commit` the
    encode of a canvas, `token` one token left to right; `length` positions make a canvas.
    """

    rows: int
    length: int
    first: float
    step: float
    commit: float
    token: float

    def diffusion(self, answer: int, steps: int) -> float:
        """Seconds for `answer` tokens when every canvas takes `steps`; the last is not encoded."""
        canvases = -(-answer // self.length)
        return canvases * self._canvas(steps) + (canvases - 1) * self.commit

    def autoregressive(self, answer: int) -> float:
        """Seconds for `answer` tokens."""
        return answer * self.token

    def _canvas(self, steps: int) -> float:
        return self.first + (steps - 1) * self.step

    def wins(self, answer: int, steps: int) -> bool:
        """Whether diffusion is quicker."""
        return self.diffusion(answer, steps) < self.autoregressive(answer)

    def most_steps(self) -> int:
        """The most steps a canvas may take for diffusion to win whole canvases; 0 if never."""
        spare = self.length * self.token - self.commit - self.first
        return 0 if spare <= 0 or self.step <= 0 else 1 + int(spare / self.step)


@dataclass(frozen=True)
class Answer:
    """One length of an answer, in tokens a row; tokens a second are of the whole batch."""

    tokens: int
    diffusion_seconds: float
    autoregressive_seconds: float
    diffusion_rate: float
    autoregressive_rate: float
    quicker: str  # "diffusion" or "autoregressive"


@dataclass(frozen=True)
class Comparison:
    """Who wins with so many `steps` a canvas.

    `wins_from` is the shortest answer that diffusion wins, `wins_always_from` the length from which
    on it wins every one, None where there is none within sixteen canvases. `most_steps` is the most
    steps a canvas may take for diffusion to win whole canvases, which is `least_tokens_per_forward`
    at least; None where not even one step would do.
    """

    threads: int
    context: int
    steps: int
    costs: Costs
    answers: tuple[Answer, ...]
    wins_from: int | None
    wins_always_from: int | None
    most_steps: int
    least_tokens_per_forward: float | None


def compare(costs: Costs, steps: int, threads: int, context: int) -> Comparison:
    """Lay the two modes side by side for answers of several lengths."""
    wins = [costs.wins(answer, steps) for answer in range(1, _CANVASES * costs.length + 1)]
    most = costs.most_steps()
    last_loss = max((place for place, won in enumerate(wins) if not won), default=-1)
    always = last_loss + 2 if last_loss + 1 < len(wins) else None
    return Comparison(
        threads=threads,
        context=context,
        steps=steps,
        costs=costs,
        answers=tuple(_answer(costs, length, steps) for length in ANSWERS),
        wins_from=wins.index(True) + 1 if True in wins else None,
        # It may win the last length looked at and lose the first of the next canvas.
        wins_always_from=always if steps <= most else None,
        most_steps=most,
        least_tokens_per_forward=costs.length / most if most else None,
    )


def _answer(costs: Costs, length: int, steps: int) -> Answer:
    diffusion, autoregressive = costs.diffusion(length, steps), costs.autoregressive(length)
    return Answer(
        tokens=length,
        diffusion_seconds=diffusion,
        autoregressive_seconds=autoregressive,
        diffusion_rate=costs.rows * length / diffusion,
        autoregressive_rate=costs.rows * length / autoregressive,
        quicker="diffusion" if costs.wins(length, steps) else "autoregressive",
    )
