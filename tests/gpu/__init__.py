"""Tests that need an accelerator: `pytest -m gpu tests/gpu`."""
