"""Time sfumato and transformers on the same files, in turns, in one run.

Usage: python benchmarks/against_transformers.py [CHECKPOINT] [--reference FOLDER] [--threads N]
           [--rounds N] [--context N] [--dtype DTYPE] [--device DEVICE] [--activations int8]
           [--output FILE] [--llama-cpp BINARY --gguf FILE]

CHECKPOINT is a folder, the small model if left out; benchmarks/random_checkpoint.py writes more.
Each round times both programs once, the second first in every other round: encoding the context, a
denoise pass without and with self-conditioning, and whole steps of either's own loop. Printed are
medians, the ratio of medians (above 1: sfumato is quicker) and its 95 % interval.

With --reference transformers loads that folder: a checkpoint of the same shape in another form, as
CHECKPOINT in NVFP4 is timed beside the same model in bf16.

--llama-cpp runs the binary of a llama.cpp that knows this model on a GGUF file of the same weights,
with the arguments that stand after `--`, and times it whole, loading included.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from sfumato.api import SMALL_FOLDER, load
from sfumato.benchmark.passes import Passes, random_ids
from sfumato.benchmark.peers import Pair, commit, compare_parts, table, whole
from sfumato.benchmark.statistics import summarise
from sfumato.benchmark.timing import Effort, seconds_of
from sfumato.errors import InputError, SfumatoError
from sfumato.evaluation.facts import gather
from sfumato.evaluation.files import check_target, write_text
from sfumato.model.diffusion_gemma import DiffusionGemma

Work = Callable[[], object]
STEPS = 4  # of a loop, the first of which is left out
PEER = "transformers"


class Clock:
    """A streamer of transformers that notes when each denoising step ends."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def put(self, value: object) -> None:
        """A commit: not a step."""

    def put_draft(self, value: object) -> None:  # noqa: ARG002 - transformers names it
        """The end of a step."""
        self.ends.append(time.perf_counter())

    def end(self) -> None:
        """Nothing to close."""


def reference(folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
    """The checkpoint as transformers loads it; a vision tower it lacks is random and idle."""
    from transformers import DiffusionGemmaForBlockDiffusion
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model = DiffusionGemmaForBlockDiffusion.from_pretrained(folder, dtype=dtype)
    if model.config.image_token_id is None:
        model.config.image_token_id = -1  # its `generate` compares ids with it, whatever it is
    return model.eval().to(device)


def pairs(network: DiffusionGemma, theirs: Any, context: int) -> dict[str, Pair]:
    """What is timed: sfumato's and transformers' seconds for one round of each part."""
    ours = Passes.make(network, 1, context)
    prompt = random_ids(network, 1, context, 0)
    length = network.config.canvas_length
    places = torch.arange(context, context + length, device=network.device)[None]
    first = theirs(input_ids=prompt, decoder_input_ids=ours.canvas)

    def forward(beliefs: torch.Tensor | None) -> Work:
        return lambda: theirs(
            past_key_values=first.past_key_values,
            decoder_input_ids=ours.canvas,
            decoder_position_ids=places,
            self_conditioning_logits=beliefs,
        )

    def loop() -> float:
        clock = Clock()
        theirs.generate(
            prompt, max_new_tokens=length, max_denoising_steps=STEPS, stability_threshold=STEPS + 1,
            streamer=clock,
        )  # fmt: skip
        return (clock.ends[-1] - clock.ends[0]) / (len(clock.ends) - 1)

    def timed(work: Work) -> Callable[[], float]:
        return lambda: seconds_of(work, network.device)

    steps = Effort(repeats=STEPS - 1, seconds=0.0)
    return {
        "encode the context": (
            timed(lambda: network.encode(prompt)),
            timed(lambda: theirs.model.encoder(input_ids=prompt)),
        ),
        "denoise, no self-conditioning": (
            timed(ours.denoise(self_conditioning=False)),
            timed(forward(None)),
        ),
        "denoise": (
            timed(ours.denoise(self_conditioning=True)),
            timed(forward(first.logits)),
        ),
        "whole step": (lambda: ours.whole_steps(steps).seconds.median, loop),
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Both programs on one checkpoint: the report as JSON values."""
    import transformers

    folder = options.checkpoint or SMALL_FOLDER
    model = load(
        options.checkpoint,
        dtype=options.dtype,
        device=options.device,
        activations=options.activations,
    )
    network = model.network
    facts = gather(model, str(folder), commit(__file__))
    theirs = reference(options.reference or folder, network.dtype, network.device)
    _check_same(network, theirs)
    parts = pairs(network, theirs, options.context)
    return {
        "schema": 1,
        "kind": "against_transformers",
        **vars(facts),
        "transformers": transformers.__version__,
        "reference": str(options.reference or folder),
        "context": options.context,
        "rounds": options.rounds,
        "results": compare_parts(parts, options.rounds, network.device, PEER),
        "llama_cpp": llama(options),
    }


def _check_same(network: DiffusionGemma, theirs: Any) -> None:
    """Raise InputError if the reference is of another shape: it would be another amount of work."""
    own, other = network.config.text, theirs.config.text_config
    names = ("hidden_size", "vocab_size", "num_experts", "moe_intermediate_size")
    different = [name for name in names if getattr(own, name) != getattr(other, name)]
    if different or len(own.layers) != other.num_hidden_layers:
        raise InputError(
            f"the reference has another {(different or ['number of layers'])[0]}",
            hint="give --reference a checkpoint of the same shape",
        )


def llama(options: argparse.Namespace) -> dict[str, Any] | None:
    """Wall seconds of the llama.cpp binary, None without one."""
    if options.llama_cpp is None:
        return None
    command = [str(options.llama_cpp), "-m", str(options.gguf), "-t", str(options.threads)]
    command += options.arguments
    samples = []
    for _ in range(options.rounds):
        begun = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True, stdin=subprocess.DEVNULL)
        samples.append(time.perf_counter() - begun)
    return {"command": command, "seconds": vars(summarise(samples))}


def tell(report: dict[str, Any]) -> str:
    """The report for people."""
    where = (
        f"{report['processor']}, {report['threads']} threads of {report['cores']} cores, "
        f"{report['device']}, sfumato "
        f"{report['sfumato']} (commit {report['commit']}), transformers {report['transformers']}, "
        f"torch {report['torch']}, {report['date']}"
    )
    what = f"{report['model']} in {report['dtype']}, context {report['context']}, "
    if report["reference"] != report["model"]:
        what += f"transformers on {report['reference']}, "
    what += f"kernels {report['kernels'] or 'none: torch alone'}"
    lines = [what, where, *table(report["results"], PEER, PEER)]
    if report["llama_cpp"] is not None:
        seconds = report["llama_cpp"]["seconds"]["median"]
        lines.append(
            f"{' '.join(report['llama_cpp']['command'])}: {seconds:.2f} s, loading included"
        )
    return "\n".join(lines)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options. Ends the program with 2 for what cannot be meant."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", nargs="?", type=Path)
    for name, default, most in (
        ("threads", 2, 4096),
        ("rounds", 7, 10_000),
        ("context", 32, 1 << 20),
    ):
        parser.add_argument(f"--{name}", type=whole(most), default=default)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--reference", type=Path)
    parser.add_argument("--activations", choices=("int8",))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--llama-cpp", type=Path)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("arguments", nargs="*", help="after --: given to llama.cpp as they are")
    found = parser.parse_args(arguments)
    if (found.llama_cpp is None) != (found.gguf is None):
        parser.error("--llama-cpp and --gguf go together")
    if found.arguments and found.llama_cpp is None:
        parser.error("what stands after -- is for --llama-cpp")
    return found


def main(arguments: Sequence[str]) -> int:
    """Measure, print, and write; 1 for a checkpoint or file that cannot be used."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    try:
        if options.output is not None:
            check_target(options.output)
        with torch.inference_mode():
            report = measure(options)
        if options.output is not None:
            write_text(options.output, json.dumps(report, indent=2) + "\n")
    except (SfumatoError, subprocess.CalledProcessError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(tell(report) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
