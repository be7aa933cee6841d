"""sfumato runs, trains and evaluates DiffusionGemma, an open block-diffusion language model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sfumato.api import Model, load
    from sfumato.config.generation import GenerationConfig
    from sfumato.config.model import ModelConfig
    from sfumato.diffusion.events import CommitEvent, Generation, GenerationStats, StepEvent
    from sfumato.errors import SfumatoError
    from sfumato.kv.cache import KVCache

__version__ = "0.1.0"

__all__ = [
    "CommitEvent",
    "Generation",
    "GenerationConfig",
    "GenerationStats",
    "KVCache",
    "Model",
    "ModelConfig",
    "SfumatoError",
    "StepEvent",
    "__version__",
    "load",
]

_HOMES = {
    "CommitEvent": "sfumato.diffusion.events",
    "Generation": "sfumato.diffusion.events",
    "GenerationConfig": "sfumato.config.generation",
    "GenerationStats": "sfumato.diffusion.events",
    "KVCache": "sfumato.kv.cache",
    "Model": "sfumato.api",
    "ModelConfig": "sfumato.config.model",
    "SfumatoError": "sfumato.errors",
    "StepEvent": "sfumato.diffusion.events",
    "load": "sfumato.api",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use: `import sfumato` alone does not load torch."""
    from importlib import import_module

    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'sfumato' has no attribute {name!r}")
    import_module("sfumato.settings").prepare_for_torch()
    return getattr(import_module(home), name)
