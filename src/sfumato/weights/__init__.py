"""Checkpoint files: read as hostile, checked complete and exact, written whole or not at all."""
