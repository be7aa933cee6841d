"""Accuracy with intervals on held-out examples, and sweeps of the decoder's settings."""
