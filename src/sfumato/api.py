"""The programming interface: `load` a checkpoint, `encode`, `denoise`, `generate`, `answer`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import torch
from torch import Tensor

from sfumato.config.generation import GenerationConfig, load_generation_config
from sfumato.config.model import ModelConfig
from sfumato.diffusion.autoregressive import generate_autoregressive
from sfumato.diffusion.events import Generation
from sfumato.diffusion.loop import OnCommit, OnStep, Watchers, generate
from sfumato.diffusion.samplers import Draws, draws_for
from sfumato.diffusion.steps import PLAIN, FusedSteps
from sfumato.errors import ContextLengthError, InputError, UsageError
from sfumato.kv.cache import KVCache, check_cache_dtype
from sfumato.model.diffusion_gemma import DiffusionGemma, with_experts
from sfumato.model.experts import form_for
from sfumato.model.kernels import narrowed, use_kernels
from sfumato.ops.kernels import AUTO, check_activations, choose, reason_for_none
from sfumato.ops.linear import ACTIVATIONS
from sfumato.settings import Settings
from sfumato.text.chat import Chat, Message
from sfumato.text.template import ChatTemplate
from sfumato.text.thoughts import parse
from sfumato.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from sfumato.media.image import ImageInput, ImageSource

    Images = Sequence[ImageSource | ImageInput] | tuple[Tensor, Tensor]

Mode = Literal["diffusion", "autoregressive"]
Loop = Literal["plain", "fast"]

SMALL_FOLDER = Path(__file__).parent / "small"
# Logits of a step that `answer` holds at once, over all its rows: 33 MB in fp32, 48 rows of the
# small model. One row always goes, which for the released model is 2^26 logits, 268 MB.
ANSWER_LOGITS = 1 << 23


@dataclass(frozen=True)
class Model:
    """A checkpoint ready to use. Shapes: B rows, T tokens, L canvas positions, V vocabulary.

    `loop` is how `generate` denoises: "plain" draws as the reference does, "fast" one number a
    position, in one pass over the vocabulary that writes no logits. None is "plain" in `generate`,
    `fastest_loop` in `answer`.
    """

    network: DiffusionGemma
    generation_config: GenerationConfig
    folder: Path | None = None
    revision: str | None = None  # the commit, for a hub repository
    loop: Loop | None = None

    def __post_init__(self) -> None:
        if self.loop not in (None, "plain", "fast"):
            raise InputError(f"loop must be 'plain', 'fast' or None, not {self.loop!r}")
        if self.loop == "fast" and self.network.dtype not in ACTIVATIONS:
            raise InputError(
                f"the fast loop takes float32 or bfloat16, not {self.network.dtype}",
                hint="leave it to 'plain'",
            )

    @property
    def config(self) -> ModelConfig:
        """The checkpoint's shapes."""
        return self.network.config

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer. Raises TokenizerError if it has none or a damaged one."""
        tokenizer = Tokenizer.from_folder(self._files())
        tokenizer.check_matches(self.config)
        return tokenizer

    @cached_property
    def template(self) -> ChatTemplate:
        """The checkpoint's chat template. Raises TemplateError if there is none."""
        return ChatTemplate.from_folder(self._files(), self.tokenizer)

    @cached_property
    def chat(self) -> Chat:
        """Tokenizer and template together."""
        return Chat(self.tokenizer, self.template, self.config.text.max_position_embeddings)

    def encode(
        self,
        input_ids: Tensor,
        cache: KVCache | None = None,
        *,
        attention_mask: Tensor | None = None,
        images: Images | None = None,
    ) -> KVCache:
        """Read `input_ids` [B, T] causally; with `cache`, append to it. Returns the cache.

        `attention_mask` [B, T] is false (0) on padding. `images` are pictures in the order of
        their places in the ids, each place written as its soft tokens (`config.image_token_id`):
        files, Pillow images, arrays, `ImageInput`s, or all of them ready as two tensors, patches
        [n, P, 3 * patch^2] and their (x, y) positions [n, P, 2].
        Raises InputError for ids that are out of range, and ContextLengthError.
        """
        return self.encode_hidden(input_ids, cache, attention_mask=attention_mask, images=images)[1]

    @torch.inference_mode()
    def encode_hidden(
        self,
        input_ids: Tensor,
        cache: KVCache | None = None,
        *,
        attention_mask: Tensor | None = None,
        images: Images | None = None,
    ) -> tuple[Tensor, KVCache]:
        """`encode`, and the final hidden states [B, T, D] too."""
        ids = self._checked_ids(input_ids)
        if attention_mask is not None:
            attention_mask = self._checked_mask(attention_mask, ids)
            if cache is None or not cache.batch_size:
                _check_rows(attention_mask)
        held = 0 if cache is None else cache.length
        if cache is not None and cache.batch_size not in (0, ids.shape[0]):
            raise InputError(
                f"the cache holds {cache.batch_size} rows, the new ids have {ids.shape[0]}"
            )
        self._check_context(held + ids.shape[1], 0)
        soft = None if images is None or len(images) == 0 else self._soft_tokens(images)
        return self.network.encode_hidden(
            ids, cache, attention_mask=attention_mask, soft_tokens=soft
        )

    @torch.inference_mode()
    def denoise(
        self, canvas: Tensor, cache: KVCache, self_conditioning_logits: Tensor | None = None
    ) -> Tensor:
        """One denoising forward: logits [B, L, V], fp32 and softcapped; `cache` is only read.

        `canvas` [B, L] are the ids to refine; `self_conditioning_logits` [B, L, V] the previous
        step's, divided by its temperature, or None at the first step.
        """
        ids = self._checked_ids(canvas)
        if cache.batch_size != ids.shape[0]:
            raise InputError(
                f"the canvas has {ids.shape[0]} rows, the cache holds {cache.batch_size}",
                hint="encode a prompt for each row first",
            )
        if self_conditioning_logits is not None:
            expected = (*ids.shape, self.config.text.vocab_size)
            if tuple(self_conditioning_logits.shape) != expected:
                raise InputError(
                    f"self_conditioning_logits must be {list(expected)}, not "
                    f"{list(self_conditioning_logits.shape)}"
                )
            self_conditioning_logits = self_conditioning_logits.to(self.network.device)
        return self.network.denoise(ids, cache, self_conditioning_logits)

    def generate(
        self,
        input_ids: Tensor,
        seed: int | Sequence[int] = 0,
        max_new_tokens: int | None = None,
        generation: GenerationConfig | None = None,
        *,
        mode: Mode = "diffusion",
        attention_mask: Tensor | None = None,
        images: Images | None = None,
        on_step: OnStep | None = None,
        on_commit: OnCommit | None = None,
    ) -> Generation:
        """Continue `input_ids` [B, T].

        With one `seed`, random numbers are drawn for the whole batch at once, as the reference
        draws them; with a sequence of seeds, one a row, each row gets what it would get alone.
        `generation` replaces the checkpoint's settings, `max_new_tokens` that one setting. In
        `mode` "autoregressive" the same weights write left to right, greedily unless
        `generation.do_sample`, and there is no canvas to watch. Raises InputError and
        ContextLengthError.
        """
        if mode not in ("diffusion", "autoregressive"):
            raise InputError(f"mode must be 'diffusion' or 'autoregressive', not {mode!r}")
        for name, watcher in (("on_step", on_step), ("on_commit", on_commit)):
            if watcher is not None and mode == "autoregressive":
                raise InputError(f"{name} watches canvases, and autoregressive mode has none")
        settings = self.generation_config if generation is None else generation
        if max_new_tokens is not None:
            settings = settings.replace(max_new_tokens=max_new_tokens)
        ids = self._checked_ids(input_ids)
        pad_id, size = settings.pad_token_id, self.config.text.vocab_size
        if pad_id is not None and pad_id >= size:
            raise InputError(
                f"pad_token_id {pad_id} is out of range",
                hint=f"this model's ids are 0 to {size - 1}",
            )
        self._check_context(ids.shape[1], self._room(settings.max_new_tokens, mode))
        draws = self._draws(seed, ids.shape[0])
        hidden, cache = self.encode_hidden(ids, attention_mask=attention_mask, images=images)
        if mode == "diffusion":
            watchers = Watchers(on_step, on_commit)
            steps = FusedSteps() if self.loop == "fast" else PLAIN
            out = generate(self.network, cache, settings, draws, watchers, steps)
        else:
            last = _last_real(hidden, attention_mask)
            out = generate_autoregressive(self.network, last, cache, settings, draws)
        if not self._has_tokenizer():
            return out
        texts = [
            parse(row, self.tokenizer, stop_ids=settings.eos_token_id).answer for row in out.tokens
        ]
        return replace(out, text=texts)

    def answer(
        self,
        prompts: str | Sequence[str],
        seed: int = 0,
        max_new_tokens: int | None = None,
        generation: GenerationConfig | None = None,
        *,
        mode: Mode = "diffusion",
    ) -> str | list[str]:
        """The answer to a prompt, or the answers to several: str for str, list for a sequence.

        Each prompt is one user turn in the checkpoint's chat template and is answered as if it
        were alone: batching changes no answer's random numbers.
        """
        if isinstance(prompts, str):
            return self.answer([prompts], seed, max_new_tokens, generation, mode=mode)[0]
        if not prompts:
            return []
        rows = [self.chat.render([Message("user", prompt)]) for prompt in prompts]
        together = self.rows_together
        answers: list[str] = []
        fast = self.with_fastest_loop()
        for start in range(0, len(rows), together):
            group = rows[start : start + together]
            ids, mask = self.pad(group)
            out = fast.generate(
                ids,
                [seed] * len(group),
                max_new_tokens,
                generation,
                mode=mode,
                attention_mask=None if bool(mask.all()) else mask,
            )
            assert out.text is not None
            answers += out.text
        return answers

    @property
    def fastest_loop(self) -> Loop:
        """What serves this model best: "fast" with compiled kernels, else "plain".

        The two draw different random numbers, so one seed gives different answers in them.
        """
        return "plain" if self.network.kernels is None else "fast"

    @property
    def rows_together(self) -> int:
        """Rows that the plain loop may answer at once, for the memory that their logits take."""
        cells = self.config.canvas_length * self.config.text.vocab_size
        return max(1, ANSWER_LOGITS // cells)

    def with_fastest_loop(self) -> Model:
        """This model, or a copy that knows its tokenizer too, with a loop chosen."""
        if self.loop is not None:
            return self
        fast = replace(self, loop=self.fastest_loop)
        kept = ("tokenizer", "template", "chat")
        fast.__dict__.update({name: own for name, own in self.__dict__.items() if name in kept})
        return fast

    def pad(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Ids and mask [B, T] of rows of unequal length, padded on the left."""
        width = max((len(row) for row in rows), default=0)
        pad_id = self.config.text.pad_token_id or 0
        padded = [[pad_id] * (width - len(row)) + list(row) for row in rows]
        ids = torch.tensor(padded, dtype=torch.long).view(len(rows), width)
        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(width) >= width - lengths[:, None]
        return ids.to(self.network.device), mask.to(self.network.device)

    def _files(self) -> Path:
        if self.folder is None:
            raise InputError("this model was not loaded from a folder and has no tokenizer")
        return self.folder

    def _has_tokenizer(self) -> bool:
        return self.folder is not None and (self.folder / "tokenizer.json").exists()

    def _room(self, max_new_tokens: int, mode: Mode) -> int:
        """Positions that many new tokens take: whole canvases in diffusion mode."""
        length = self.config.canvas_length
        return -(-max_new_tokens // length) * length if mode == "diffusion" else max_new_tokens

    def _draws(self, seed: int | Sequence[int], rows: int) -> Draws:
        seeds = list(seed) if isinstance(seed, Sequence) else [seed]
        for one in seeds:
            if not isinstance(one, int) or isinstance(one, bool) or not 0 <= one < 2**63:
                raise InputError(f"a seed must be an integer from 0 to 2^63 - 1, not {one!r}")
        if not isinstance(seed, int) and len(seeds) != rows:
            raise InputError(f"{len(seeds)} seeds were given for {rows} rows")
        return draws_for(seed, self.network.device)

    def _checked_ids(self, ids: Tensor) -> Tensor:
        if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.dtype not in _ID_TYPES:
            shape = f"{list(ids.shape)} {ids.dtype}" if isinstance(ids, Tensor) else type(ids)
            raise InputError(f"ids must be an integer tensor [rows, tokens], not {shape}")
        if ids.numel() == 0:
            raise InputError("the prompt is empty", hint="give at least one token a row")
        low, high = int(ids.min()), int(ids.max())
        size = self.config.text.vocab_size
        if low < 0 or high >= size:
            wrong = low if low < 0 else high
            raise InputError(
                f"token id {wrong} is out of range", hint=f"this model's ids are 0 to {size - 1}"
            )
        return ids.to(self.network.device, torch.long)

    def _checked_mask(self, mask: Tensor, ids: Tensor) -> Tensor:
        if not isinstance(mask, Tensor):
            raise InputError(f"attention_mask must be a tensor [rows, tokens], not {type(mask)}")
        if mask.shape != ids.shape:
            raise InputError(f"attention_mask is {list(mask.shape)}, the ids are {list(ids.shape)}")
        return mask.to(self.network.device, torch.bool)

    def _check_context(self, tokens: int, new: int) -> None:
        limit = self.config.text.max_position_embeddings
        if tokens + new > limit:
            asked = f"{tokens} tokens" + (f" and {new} new ones" if new else "")
            raise ContextLengthError(
                f"the prompt is too long: {asked}, but this model's maximum context length is "
                f"{limit} tokens",
                hint="shorten the prompt or ask for fewer new tokens",
            )

    def _soft_tokens(self, images: Images) -> Tensor:
        from sfumato.media.image import ImageInput, batch_images, load_image

        if len(images) == 2 and all(isinstance(one, Tensor) for one in images):
            pixels, positions = cast("tuple[Tensor, Tensor]", images)
        else:
            sources = cast("Sequence[ImageSource | ImageInput]", images)
            ready = [one if isinstance(one, ImageInput) else load_image(one) for one in sources]
            pixels, positions = batch_images(ready)
        device = self.network.device
        return self.network.soft_tokens(pixels.to(device), positions.to(device))


_ID_TYPES = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8)


def _check_rows(real: Tensor) -> None:
    """Refuse rows of `real` [B, T] that are all padding: there is no state to go on from."""
    empty = (~real.any(dim=1)).nonzero()
    if len(empty):
        raise InputError(
            f"row {int(empty[0]) + 1} of the prompt is empty: its attention_mask hides every token",
            hint="give at least one token a row",
        )


def _last_real(hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
    """The state [B, D] of each row's last token that is not padding."""
    if attention_mask is None:
        return hidden[:, -1]
    places = torch.arange(hidden.shape[1], device=hidden.device)
    last = torch.where(attention_mask.bool().to(hidden.device), places, -1).amax(1)
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), last]


def load(
    path_or_repo: str | Path | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str = "cpu",
    *,
    revision: str | None = None,
    cache_dtype: str | None = None,
    kernels: str | None = None,
    activations: str | None = None,
) -> Model:
    """Load a checkpoint: a folder, a hub repository, or with no name the small model inside.

    `dtype` is "float32", "bfloat16" or "float16"; by default the checkpoint's own, and float32 for
    the small model, whose arithmetic is too small for bfloat16 to pay. `revision` is a repository's
    branch, tag or commit. `cache_dtype` "int8" rounds what new caches hold to 8 bits, half the
    memory of bfloat16; by default they hold the weights' dtype.

    `kernels` names the compiled kernels to compute with: "auto", "reference" for torch alone, or an
    instruction set; if left out SFUMATO_KERNELS is read, else it is "auto". Then kernels serve
    wherever they can but where `dtype` is given as float32: there the bits are the reference's.

    `activations` "int8" lets them round activations to 8 bits for weights in NVFP4, and for a table
    in 8 bits with AVX-512 VNNI: faster, and no longer exact. "exact" leaves them as they are, and
    so does None unless SFUMATO_ACTIVATIONS says otherwise. A model of less than 128 M parameters
    is packed: change its weights through `load_state_dict`, not in place.

    Raises HubError, ConfigError, CheckpointError, UsageError for kernels that cannot be, or
    InputError for a dtype or device that cannot be.
    """
    from sfumato.weights.hub import resolve
    from sfumato.weights.loader import load_network

    check_cache_dtype(cache_dtype)
    settings = Settings.from_environment()
    wanted = settings.kernels if kernels is None else kernels
    narrow = check_activations(settings.activations if activations is None else activations)
    chosen = choose(wanted, narrow=narrow)
    exact = dtype in ("float32", torch.float32)
    small = path_or_repo is None
    if small and revision is not None:
        raise InputError("the small model has no revisions", hint="name a hub repository")
    if small and dtype is None:
        dtype = "float32"
    folder = SMALL_FOLDER if path_or_repo is None else resolve(path_or_repo, revision)
    served = chosen is not None and (wanted != AUTO or not exact)
    keep = served and str(device) == "cpu"
    if narrow and not keep:
        raise _no_kernels()
    network, config = load_network(folder, dtype, device, keep_quantised=keep)
    network.cache_dtype = cache_dtype
    if served:
        refused = use_kernels(network, chosen)
        if network.kernels is None and wanted != AUTO:
            raise UsageError(
                f"the kernels for {wanted} cannot serve this model: {'; '.join(refused.values())}",
                hint="leave kernels to 'auto', or 'reference'",
            )
    if narrow:
        _check_narrowed(network)
    text = config.text
    with_experts(network, form_for(text, network.device, may_be_dense=small))
    return Model(network, load_generation_config(folder, text), folder, _commit_of(folder))


def _no_kernels() -> UsageError:
    """Activations in 8 bits were asked for where no kernels compute."""
    missing = reason_for_none()
    return UsageError(
        "activations in 8 bits are the work of kernels, and none serves here"
        + (f": {missing}" if missing else ""),
        hint=""
        if missing
        else "leave float32 and other devices out, and kernels at 'auto' or a set's name",
    )


def _check_narrowed(network: DiffusionGemma) -> None:
    """Raise UsageError if kernels round none of this model's activations to 8 bits."""
    if network.kernels is None:
        raise UsageError(
            f"no kernel serves this model, so its activations cannot be in 8 bits: "
            f"{'; '.join(network.refused.values())}",
            hint="leave --dtype to the checkpoint, or activations as they are",
        )
    if not narrowed(network):
        raise UsageError(
            "activations in 8 bits need weights in NVFP4, and this model has none",
            hint="quantise it first: sfumato quantize SRC DST",
        )


def _commit_of(folder: Path) -> str | None:
    """The commit that a folder of the hub's cache holds: its name there."""
    name = folder.name
    in_cache = folder.parent.name == "snapshots" and re.fullmatch(r"[0-9a-f]{40}", name)
    return name if in_cache else None
