"""Time sfumato and llama.cpp on text layers of the same shape, in turns, in one run.

Usage: python benchmarks/against_llama_cpp.py CHECKPOINT GGUF [--threads N] [--rounds N]
           [--prompts N ...] [--tokens N] [--activations int8] [--output FILE]

CHECKPOINT is a folder by benchmarks/random_checkpoint.py, GGUF a file of the same shape by
benchmarks/random_gguf.py. llama.cpp is the one inside the package xllamacpp (`pip install gguf
xllamacpp`); it knows Gemma 4, whose layers DiffusionGemma has, and not the decoder around them. So
what both do is compared: reading a prompt, with the head on its last position, and writing tokens
left to right after the shortest prompt, without sampling. llama.cpp's times are its own account,
and it rounds activations to 8 bits for weights of few bits, which sfumato does where it is told to.
Printed are medians, the ratio of medians (above 1: sfumato is quicker) and its 95 % interval.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sfumato import load  # before torch: waiting threads then wait as in the command line

# isort: split
import torch

from sfumato.benchmark.passes import random_ids
from sfumato.benchmark.peers import Pair, commit, compare_parts, table, whole
from sfumato.benchmark.timing import seconds_of
from sfumato.config.model import TextConfig
from sfumato.errors import InputError, SfumatoError
from sfumato.evaluation.facts import gather
from sfumato.evaluation.files import check_target, write_text
from sfumato.model.diffusion_gemma import DiffusionGemma

SPECIAL = 260  # ids below are control tokens and bytes in benchmarks/random_gguf.py's vocabulary
PEER = "llama_cpp"


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


def check_same(text: TextConfig, file: Path) -> None:
    """Raise InputError if the file is of another shape: it would be another amount of work."""
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise InputError("gguf is not here", hint="run: pip install gguf") from error
    try:
        reader = GGUFReader(file)
    except (ValueError, IndexError) as error:
        raise InputError(f"{file} is no GGUF file") from error
    tables = [one.shape for one in reader.tensors if one.name == "token_embd.weight"]
    found = {"vocabulary": int(tables[0][1]) if tables else None}
    expected = {
        "vocabulary": text.vocab_size,
        "block_count": len(text.layers),
        "embedding_length": text.hidden_size,
        "feed_forward_length": text.intermediate_size,
        "expert_count": text.num_experts,
        "expert_used_count": text.top_k_experts,
        "expert_feed_forward_length": text.moe_intermediate_size,
    }
    for name, value in expected.items():
        if field := reader.fields.get(f"gemma4.{name}"):
            found[name] = int(field.contents())
        if found.get(name) != value:
            raise InputError(
                f"{file} has another {name}: {found.get(name)}, and the checkpoint {value}",
                hint="write one of the same shape: benchmarks/random_gguf.py",
            )


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Both programs: the report as JSON values."""
    model = load(options.checkpoint, activations=options.activations)
    facts = gather(model, str(options.checkpoint), commit(__file__))
    context = max(options.prompts) + options.tokens + 8
    check_same(model.network.config.text, options.gguf)
    theirs = LlamaCpp(options.gguf, options.threads, context)
    parts = pairs(model.network, theirs, options.prompts, options.tokens)
    return {
        "schema": 1,
        "kind": "against_llama_cpp",
        **vars(facts),
        "llama_cpp": theirs.version,
        "gguf": str(options.gguf),
        "gguf_bytes": options.gguf.stat().st_size,
        "activations": options.activations,
        "rounds": options.rounds,
        "results": compare_parts(parts, options.rounds, model.network.device, PEER),
    }


def tell(report: dict[str, Any]) -> str:
    """The report for people."""
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
    return "\n".join([what, where, *table(report["results"], PEER, "llama.cpp")])


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options. Ends the program with 2 for what cannot be meant."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--threads", type=whole(4096), default=2)
    parser.add_argument("--rounds", type=whole(10_000), default=3)
    parser.add_argument("--prompts", type=whole(1 << 16), nargs="+", default=[32, 256, 1024])
    parser.add_argument("--tokens", type=whole(4096), default=16)
    parser.add_argument("--activations", choices=("int8",))
    parser.add_argument("--output", type=Path)
    return parser.parse_args(arguments)


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
