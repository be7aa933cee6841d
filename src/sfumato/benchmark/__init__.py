"""Counting the arithmetic of the two passes, timing them, and saying what the times come to."""
