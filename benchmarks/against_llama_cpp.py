"""Time sfumato and llama.cpp on text layers of the same shape, in turns, in one run.

Usage: python benchmarks/against_llama_cpp.py CHECKPOINT GGUF [--threads N] [--rounds N]
           [--prompts N ...] [--tokens N] [--activations int8] [--output FILE]

CHECKPOINT is a folder by benchmarks/random_checkpoint.py, GGUF a file of the same shape by
benchmarks/random_gguf.py. llama.cpp is the one inside the package xllamacpp (`pip install
xllamacpp`); it knows Gemma 4, whose layers DiffusionGemma has, and not the decoder around them. So
what both do is compared: reading a prompt, with the head on its last position, and writing tokens
left to right after the shortest prompt, without sampling. llama.cpp's times are its own account,
and it rounds activations to 8 bits for weights of few bits, which sfumato does where it is told to.
Printed are medians, the ratio of medians (above 1: sfumato is quicker) and its 95 % interval.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sfumato import load  # before torch: waiting threads then wait as in the command line

# isort: split
import torch

from sfumato.benchmark.passes import random_ids
from sfumato.benchmark.statistics import ratio_of_medians, summarise
from sfumato.benchmark.timing import alternate, seconds_of, watching
from sfumato.errors import InputError, SfumatoError
from sfumato.evaluation.facts import gather
from sfumato.evaluation.files import check_target, write_text
from sfumato.model.diffusion_gemma import DiffusionGemma

SPECIAL = 260  # ids below are control tokens and bytes in benchmarks/random_gguf.py's vocabulary
Pair = tuple[Callable[[], float], Callable[[], float]]


class LlamaCpp:
    """A server of llama.cpp inside this process. Raises InputError where that cannot be."""

    def __init__(self, file: Path, threads: int, context: int) -> None:
        try:
            import xllamacpp
        except ImportError as error:
            raise InputError("xllamacpp is not here", hint="run: pip install xllamacpp") from error
        if not file.is_file():
            raise InputError(f"{file} is no file", hint="write one: benchmarks/random_gguf.py")
        self.version = f"xllamacpp {xllamacpp.__version__}"
        params = xllamacpp.CommonParams()
        params.model.path = str(file)
        params.n_ctx, params.n_parallel, params.n_gpu_layers = context, 1, 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        # A prompt is read in one go, and nothing is kept of it that would take time to keep.
        params.n_batch = params.n_ubatch = context
        params.n_ctx_checkpoints = params.cache_ram_mib = 0
        params.enable_chat_template = params.warmup = params.fit_params = False
        params.verbosity = 0
        self._server = xllamacpp.Server(params)

    def timings(self, ids: list[int], tokens: int) -> dict[str, float]:
        """What reading `ids` and writing `tokens` took, in llama.cpp's names and milliseconds."""
        request = {
            "prompt": ids, "max_tokens": tokens, "cache_prompt": False, "temperature": 0.0,
            "ignore_eos": True,
        }  # fmt: skip
        answer: dict[str, Any] = self._server.handle_completions(request)
        if "timings" not in answer:
            raise InputError(f"llama.cpp answered: {str(answer)[:200]}")
        found: dict[str, float] = answer["timings"]
        if found["prompt_n"] != len(ids) or found["predicted_n"] != tokens:
            raise InputError(f"llama.cpp did other work than was asked for: {found}")
        return found

    def prompt(self, ids: list[int]) -> float:
        """Seconds for reading `ids`."""
        return self.timings(ids, 1)["prompt_ms"] / 1e3

    def token(self, ids: list[int], tokens: int) -> float:
        """Seconds a token after `ids`. The first is the prompt's own, and costs nothing."""
        return self.timings(ids, tokens + 1)["predicted_ms"] / 1e3 / tokens


def pairs(
    network: DiffusionGemma, theirs: LlamaCpp, prompts: Sequence[int], tokens: int
) -> dict[str, Pair]:
    """What is timed: sfumato's and llama.cpp's seconds for one round of each part."""

    def ids(length: int) -> list[int]:
        found: list[int] = random_ids(network, 1, length, 0)[0].clamp(min=SPECIAL).tolist()
        return found

    def read(given: list[int]) -> Callable[[], float]:
        prompt = torch.tensor([given])

        def work() -> torch.Tensor:
            hidden, _ = network.encode_hidden(prompt)
            return network.head(hidden[:, -1]).argmax(dim=-1)

        return lambda: seconds_of(work, network.device)

    def write(given: list[int]) -> float:
        hidden, cache = network.encode_hidden(torch.tensor([given]))
        last = network.head(hidden[:, -1]).argmax(dim=-1)

        def work() -> None:
            nonlocal cache, last
            for _ in range(tokens):
                step, cache = network.encode_hidden(last[:, None], cache)
                last = network.head(step[:, -1]).argmax(dim=-1)

        return seconds_of(work, network.device) / tokens

    found: dict[str, Pair] = {}
    for length in prompts:
        given = ids(length)
        found[f"read {length:,} tokens"] = (read(given), partial(theirs.prompt, given))
    short = ids(min(prompts))
    found[f"a token, {tokens} after {len(short):,}"] = (
        lambda: write(short),
        lambda: theirs.token(short, tokens),
    )
    return found


def commit() -> str:
    """The commit of the working tree, with a mark if it has changes."""
    folder = Path(__file__).resolve().parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Both programs: the report as JSON values."""
    model = load(options.checkpoint, activations=options.activations)
    facts = gather(model, str(options.checkpoint), commit())
    context = max(options.prompts) + options.tokens + 8
    theirs = LlamaCpp(options.gguf, options.threads, context)
    rows = []
    for name, pair in pairs(model.network, theirs, options.prompts, options.tokens).items():
        with watching(model.network.device) as watch:
            ours, others = alternate(pair, options.rounds)
        rows.append(
            {
                "part": name,
                "sfumato_seconds": vars(summarise(ours)),
                "llama_cpp_seconds": vars(summarise(others)),
                "ratio": vars(ratio_of_medians(others, ours)),
                "others_cores": watch.others_cores,
            }
        )
    return {
        "schema": 1,
        "kind": "against_llama_cpp",
        **vars(facts),
        "llama_cpp": theirs.version,
        "gguf": str(options.gguf),
        "gguf_bytes": options.gguf.stat().st_size,
        "activations": options.activations,
        "rounds": options.rounds,
        "results": rows,
    }


def tell(report: dict[str, Any]) -> str:
    """The report for people."""
    header = f"{'':28}{'sfumato ms':>12}{'llama.cpp ms':>14}{'ratio':>8}  95 %"
    what = (
        f"{report['model']} in {report['dtype']}, kernels {report['kernels'] or 'none'}, "
        f"activations {report['activations'] or 'as they are'}; "
        f"{report['gguf']}, {report['gguf_bytes'] / 1e9:.1f} GB, {report['llama_cpp']}"
    )
    where = (
        f"{report['processor']}, {report['threads']} threads of {report['cores']} cores, sfumato "
        f"{report['sfumato']} (commit {report['commit']}), torch {report['torch']}, "
        f"{report['date']}"
    )
    lines = [what, where, header]
    for row in report["results"]:
        ours, theirs = (1e3 * row[f"{who}_seconds"]["median"] for who in ("sfumato", "llama_cpp"))
        ratio, load = row["ratio"], row["others_cores"]
        busy = "" if load is None or load < 0.1 else f"  others took {load:.1f} cores"
        figures = f"{ours:>12.1f}{theirs:>14.1f}{ratio['value']:>8.2f}"
        interval = f"{ratio['low']:.2f}-{ratio['high']:.2f}"
        lines.append(f"{row['part']:28}{figures}  {interval}{busy}")
    return "\n".join(lines)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options. Ends the program with 2 for what cannot be meant."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--threads", type=_whole(4096), default=2)
    parser.add_argument("--rounds", type=_whole(10_000), default=3)
    parser.add_argument("--prompts", type=_whole(1 << 16), nargs="+", default=[32, 256, 1024])
    parser.add_argument("--tokens", type=_whole(4096), default=16)
    parser.add_argument("--activations", choices=("int8",))
    parser.add_argument("--output", type=Path)
    return parser.parse_args(arguments)


def _whole(most: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not (text.isascii() and text.isdigit() and 1 <= int(text[:12]) <= most):
            raise argparse.ArgumentTypeError(f"must be a whole number from 1 to {most}")
        return int(text)

    return number


def main(arguments: Sequence[str]) -> int:
    """Measure, print, and write; 1 for a file that cannot be used."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    try:
        if options.output is not None:
            check_target(options.output)
        with torch.inference_mode():
            report = measure(options)
        if options.output is not None:
            write_text(options.output, json.dumps(report, indent=2) + "\n")
    except (SfumatoError, OSError, RuntimeError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(tell(report) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
