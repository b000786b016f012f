"""Data generation: paired speech, LLM targets, published corpora."""
