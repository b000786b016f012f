"""The embedded default: a small spoken world, its frozen backbones, and the scripts that made them."""
