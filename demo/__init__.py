"""Embedded default: a small synthetic world of speech, its frozen backbones, and the scripts that made them."""
