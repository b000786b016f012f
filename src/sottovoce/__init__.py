"""Sottovoce: an ear for how things are said, for LLMs that stay frozen."""

__version__ = "0.1.0"
