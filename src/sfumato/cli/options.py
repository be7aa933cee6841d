"""Options that several commands share, in groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sfumato.cli.checkpoint import SMALL
from sfumato.errors import InputError
from sfumato.settings import Settings

if TYPE_CHECKING:
    from sfumato.config.generation import GenerationConfig

Mode = Literal["diffusion", "autoregressive"]
MODEL_HELP = "A checkpoint's folder or a hub repository; the small model if left out."
MAX_SEED = 2**63 - 1  # what torch.Generator takes


@dataclass(frozen=True)
class ModelOptions:
    """Which model, in which form, where."""

    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", metavar="MODEL", help=f"{MODEL_HELP} Else SFUMATO_MODEL is read."
        ),
    ] = None
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="DTYPE",
            help="float32, bfloat16 or float16; else as stored, the small model in float32.",
        ),
    ] = None
    device: Annotated[str, typer.Option(metavar="DEVICE", help="cpu, cuda, cuda:1, mps.")] = "cpu"
    activations: Annotated[
        Literal["int8", "exact"] | None,
        typer.Option(
            help="int8 rounds activations to 8 bits where weights are quantised: faster, not "
            "exact. Else SFUMATO_ACTIVATIONS is read."
        ),
    ] = None


@dataclass(frozen=True)
class DecodingOptions:
    """How the model decodes; the rest comes from the checkpoint's own settings."""

    seed: Annotated[int, typer.Option(metavar="N", help="Equal seeds give equal answers.")] = 0
    max_new_tokens: Annotated[
        int | None, typer.Option(metavar="N", help="The most tokens to write.")
    ] = None
    steps: Annotated[
        int | None, typer.Option(metavar="N", help="The most denoising steps of a canvas.")
    ] = None
    entropy_bound: Annotated[
        float | None,
        typer.Option(metavar="X", help="Uncertainty in nats that one step may accept."),
    ] = None
    t_min: Annotated[
        float | None, typer.Option(metavar="X", help="The temperature of the last step.")
    ] = None
    t_max: Annotated[
        float | None, typer.Option(metavar="X", help="The temperature of the first step.")
    ] = None
    confidence: Annotated[
        float | None,
        typer.Option(metavar="X", help="Mean entropy in nats below which a canvas is done."),
    ] = None
    stability: Annotated[
        int | None,
        typer.Option(metavar="N", help="Earlier steps that must agree before a canvas is done."),
    ] = None
    restart_steps: Annotated[
        int | None,
        typer.Option(metavar="N", help="Steps after which a canvas that is not done starts anew."),
    ] = None
    mode: Annotated[
        Mode,
        typer.Option(help="autoregressive decodes left to right with the same weights."),
    ] = "diffusion"
    temperature: Annotated[
        float | None,
        typer.Option(
            metavar="X", help="Sample at this temperature; for the autoregressive mode alone."
        ),
    ] = None

    def check(self) -> None:
        """Raise InputError for what no checkpoint could make good, before one is loaded."""
        if not 0 <= self.seed <= MAX_SEED:
            raise InputError(f"--seed must be from 0 to {MAX_SEED}, not {self.seed}")
        if self.temperature is not None and self.mode == "diffusion":
            raise InputError(
                "--temperature is for --mode autoregressive",
                hint="the diffusion loop's temperatures are --t-min and --t-max",
            )
        apart = {name: value for name, value in self.changes().items() if name not in _TOGETHER}
        _config(apart)

    def check_mode(self) -> None:
        """Raise InputError for an option of denoising where nothing is denoised.

        For commands whose mode is final; a conversation may change its own.
        """
        given = [name for name in _DENOISING if getattr(self, name) is not None]
        if self.mode == "autoregressive" and given:
            raise InputError(
                f"--{given[0].replace('_', '-')} is for --mode diffusion",
                hint="left to right, nothing is denoised: leave it out",
            )

    def changes(self) -> dict[str, Any]:
        """The settings that were given, by their names in GenerationConfig."""
        given = {
            "max_new_tokens": self.max_new_tokens,
            "max_denoising_steps": self.steps,
            "entropy_bound": self.entropy_bound,
            "t_min": self.t_min,
            "t_max": self.t_max,
            "confidence_threshold": self.confidence,
            "stability_threshold": self.stability,
            "restart_steps": self.restart_steps,
            "temperature": self.temperature,
        }
        found: dict[str, Any] = {name: v for name, v in given.items() if v is not None}
        if self.temperature is not None:
            found["do_sample"] = True
        return found

    def over(self, base: GenerationConfig) -> GenerationConfig:
        """`base` with the settings that were given."""
        return base.replace(**self.changes())


_DENOISING = (
    *("steps", "entropy_bound", "t_min", "t_max", "confidence", "stability"),
    "restart_steps",
)

# These two are checked against each other, so only where the checkpoint's are known.
_TOGETHER = ("t_min", "t_max")


def _config(changes: dict[str, Any]) -> GenerationConfig:
    from sfumato.config.generation import GenerationConfig

    return GenerationConfig().replace(**changes)


def chosen_model(flag: str | None) -> str | None:
    """The model's name: the flag, else the environment, else None for the small model."""
    if flag is not None and not flag.strip():
        raise InputError("the model's name is empty", hint="leave it out for the small model")
    name = flag if flag is not None else Settings.from_environment().model
    return None if name == SMALL else name
