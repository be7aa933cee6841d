"""`sfumato show`: what a checkpoint is, from its configuration alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.cli.checkpoint import config_folder, display_name
from sfumato.cli.interrupts import leaving_at_once
from sfumato.cli.options import MODEL_HELP, chosen_model
from sfumato.cli.terminal import human_bytes, human_count, print_json, print_pairs

if TYPE_CHECKING:
    from pathlib import Path

    from sfumato.config.generation import GenerationConfig
    from sfumato.config.model import ModelConfig
    from sfumato.weights.inventory import Inventory


def show(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help=MODEL_HELP)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what a checkpoint is.

    Parameters in all and active, memory by format, layers, canvas, context, ids. No weights
    are loaded: a configuration is enough.
    """
    name = chosen_model(model)
    folder = config_folder(name)
    with leaving_at_once():
        from sfumato.config.generation import load_generation_config
        from sfumato.config.parse import load_config
        from sfumato.config.quantisation import load_quantisation
        from sfumato.weights.inventory import take_inventory

    config = load_config(folder)
    generation = load_generation_config(folder, config.text)
    report = describe(config, generation, take_inventory(config))
    report = {"model": display_name(name), "folder": str(folder), **report}
    report["memory"]["files"] = _weight_bytes(folder)
    report["quantisation"] = None
    if (found := load_quantisation(folder)) is not None:
        kept = list(found.kept)
        embedding = "int8" if found.int8_embedding else None
        report["quantisation"] = {
            "format": "nvfp4",
            "dialect": found.dialect,
            "embedding": embedding,
            "kept": kept,
        }
    if as_json:
        print_json(report)
    else:
        print_pairs(_lines(report))


def describe(
    config: ModelConfig, generation: GenerationConfig, inventory: Inventory
) -> dict[str, Any]:
    """The report as JSON values."""
    text = config.text
    parts = ("embedding", "attention", "dense_mlp", "experts", "router", "norms_and_scalars")
    return {
        "parameters": {
            "all": inventory.all,
            "total": inventory.total,
            "active": inventory.active,
            "parts": {
                name: getattr(inventory, name) for name in (*parts, "self_conditioning", "vision")
            },
        },
        "tensors": inventory.tensors,
        "memory": {
            "float32": inventory.bytes_float32,
            "bfloat16": inventory.bytes_bfloat16,
            "nvfp4_estimate": inventory.bytes_nvfp4,
        },
        "dtype": config.dtype,
        "layers": {
            "count": text.num_hidden_layers,
            "sliding": sum(layer.is_sliding for layer in text.layers),
            "full": sum(not layer.is_sliding for layer in text.layers),
            "pattern": "".join("S" if layer.is_sliding else "F" for layer in text.layers),
        },
        "hidden_size": text.hidden_size,
        "dense_mlp_size": text.intermediate_size,
        "experts": {
            "count": text.num_experts,
            "per_token": text.top_k_experts,
            "size": text.moe_intermediate_size,
        },
        "attention": _attention(config),
        "vocabulary": text.vocab_size,
        "context": text.max_position_embeddings,
        "sliding_window": text.sliding_window,
        "canvas_length": config.canvas_length,
        "images": config.vision is not None,
        "ids": {
            "pad": generation.pad_token_id,
            "bos": generation.bos_token_id,
            "stop": list(generation.eos_token_id),
            "image": config.image_token_id if config.vision is not None else None,
        },
        "decoding": {
            "max_denoising_steps": generation.max_denoising_steps,
            "entropy_bound": generation.entropy_bound,
            "t_min": generation.t_min,
            "t_max": generation.t_max,
            "confidence_threshold": generation.confidence_threshold,
            "stability_threshold": generation.stability_threshold,
            "restart_steps": generation.restart_steps,
            "max_new_tokens": generation.max_new_tokens,
        },
    }


def _attention(config: ModelConfig) -> dict[str, Any]:
    kinds = {layer.kind: layer for layer in config.text.layers}
    return {
        "heads": config.text.num_attention_heads,
        **{
            kind: {"key_value_heads": layer.num_key_value_heads, "head_dim": layer.head_dim}
            for kind, layer in sorted(kinds.items())
        },
    }


def _weight_bytes(folder: Path) -> int | None:
    """Bytes of the weight files, None where there are none (yet)."""
    sizes = [path.stat().st_size for path in folder.glob("*.safetensors") if path.is_file()]
    return sum(sizes) if sizes else None


def _stored_as(report: dict[str, Any]) -> str:
    found = report["quantisation"]
    if found is None:
        return str(report["dtype"])
    embedding = f", the embedding {found['embedding']}" if found["embedding"] else ""
    return f"NVFP4 ({found['dialect']}){embedding}, the rest {report['dtype']}"


def _lines(report: dict[str, Any]) -> list[tuple[str, str]]:
    parameters, memory, layers = report["parameters"], report["memory"], report["layers"]
    experts, decoding, ids = report["experts"], report["decoding"], report["ids"]
    parts = [(name, count) for name, count in parameters["parts"].items() if count]
    files, active = memory["files"], human_count(parameters["active"])
    kinds = f"{layers['count']}: {layers['sliding']} sliding, {layers['full']} full"
    steps, bound = decoding["max_denoising_steps"], decoding["entropy_bound"]
    limits = f"{steps} steps, entropy bound {bound}"
    if decoding["restart_steps"] is not None:
        limits += f", anew after {decoding['restart_steps']}"
    return [
        ("model", report["model"]),
        ("folder", report["folder"]),
        ("parameters", f"{human_count(parameters['total'])}, {active} active a token"),
        *((f"  {name.replace('_', ' ')}", human_count(count)) for name, count in parts),
        ("  all in the files", human_count(parameters["all"])),
        ("files", human_bytes(files) if files is not None else "no weights here"),
        ("in float32", human_bytes(memory["float32"])),
        ("in bfloat16", human_bytes(memory["bfloat16"])),
        ("in NVFP4", f"about {human_bytes(memory['nvfp4_estimate'])}"),
        ("stored as", _stored_as(report)),
        ("layers", f"{kinds} ({layers['pattern']})"),
        ("hidden size", f"{report['hidden_size']}"),
        ("experts", f"{experts['count']}, {experts['per_token']} a token, {experts['size']} wide"),
        ("vocabulary", f"{report['vocabulary']:,}"),
        ("context", f"{report['context']:,} tokens, window {report['sliding_window']:,}"),
        ("canvas", f"{report['canvas_length']} tokens"),
        ("images", "yes" if report["images"] else "no"),
        ("ids", f"pad {ids['pad']}, bos {ids['bos']}, stop {', '.join(map(str, ids['stop']))}"),
        ("decoding", f"{limits}, temperature {decoding['t_max']} to {decoding['t_min']}"),
    ]
