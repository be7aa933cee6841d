"""The same weights read left to right: the encoder with the head on its last hidden state.

This is the baseline that diffusion is compared with. It is an ordinary cached decoder.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from sfumato.config.generation import GenerationConfig
from sfumato.diffusion.events import Generation, GenerationStats
from sfumato.diffusion.samplers import Draws, check_finite
from sfumato.kv.cache import KVCache
from sfumato.model.diffusion_gemma import DiffusionGemma


@torch.inference_mode()
def generate_autoregressive(
    net: DiffusionGemma,
    hidden: Tensor,
    cache: KVCache,
    config: GenerationConfig,
    draws: Draws,
) -> Generation:
    """Write token by token after the encoded prompt.

    `hidden` [B, D] is the final state of each row's last prompt token. Greedy unless
    `config.do_sample`, which draws one token a row and step at `config.temperature`.
    """
    started = time.perf_counter()
    rows = hidden.shape[0]
    tokens: list[list[int]] = [[] for _ in range(rows)]
    open_rows = torch.ones(rows, 1, dtype=torch.bool, device=hidden.device)
    while True:
        logits = net.head(hidden)
        check_finite(logits)
        if config.do_sample:
            chosen = draws.sample(torch.softmax(logits / config.temperature, dim=-1)[:, None])
        else:
            chosen = logits.argmax(dim=-1, keepdim=True)
        for row in range(rows):
            if bool(open_rows[row]):
                token = int(chosen[row])
                tokens[row].append(token)
                done = token in config.eos_token_id or len(tokens[row]) >= config.max_new_tokens
                open_rows[row] = not done
        if not bool(open_rows.any()):
            break
        # A finished row goes on as padding, which nothing sees and which takes no position.
        states, _ = net.encode_hidden(chosen, cache, attention_mask=open_rows)
        hidden = states[:, 0]
    steps = [len(row) for row in tokens]
    rates = [1.0] * rows
    seconds = time.perf_counter() - started
    return Generation(tokens, None, GenerationStats(steps, [0] * rows, rates, seconds))
