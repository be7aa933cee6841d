"""What every test shares: one thread, no network, settled property tests."""

from __future__ import annotations

import os

# Read by huggingface_hub when it is first imported, so set before any test module is: a test that
# would reach a hub fails at once instead of waiting for a network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from hypothesis import HealthCheck, settings

# Tiny tensors gain nothing from threads, and one thread leaves the other core to whoever is there.
torch.set_num_threads(1)

settings.register_profile(
    "house",
    deadline=None,  # a shared machine's clock decides nothing
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("ci", settings.get_profile("house"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "house")
