"""The one tree of errors. Each says what was wrong, where, and (in `hint`) what to do next."""

from __future__ import annotations


class SfumatoError(Exception):
    """Base of everything this package raises on purpose.

    `message` is one line for a person; `hint`, if there is one, is the next step.
    `exit_code` is what the command line ends with: 1 for a failure, 2 for a usage error.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(SfumatoError):
    """The caller asked for something that cannot be meant: exit code 2."""

    exit_code = 2


class InputError(UsageError):
    """Token ids, prompts, shapes or option values that the model cannot take."""


class ContextLengthError(InputError):
    """The prompt and the requested tokens do not fit in the model's context."""


class ConfigError(SfumatoError):
    """A configuration file is unreadable, contradictory, or asks for something unsupported."""


class CheckpointError(SfumatoError):
    """Weight files are damaged, incomplete, hostile, or do not match the configuration."""


class QuantisationError(SfumatoError):
    """Weights, codes or scales that a narrow number format cannot hold."""


class HubError(SfumatoError):
    """A hub repository could not be found, reached, or used."""


class TokenizerError(SfumatoError):
    """Tokenizer files are damaged or do not match the model."""


class TemplateError(SfumatoError):
    """The chat template failed, was refused by the sandbox, or ran out of time."""


class MediaError(SfumatoError):
    """An image or video could not be read or is outside the limits."""


class TrainingError(SfumatoError):
    """A training run cannot start, go on, or resume."""


class EvaluationError(SfumatoError):
    """An evaluation's task set or settings cannot be used."""
