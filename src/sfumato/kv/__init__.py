"""Caches of the encoded prefix."""
