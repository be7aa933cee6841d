"""Narrow number formats: what they can hold, how weights get into them, and what that costs."""
