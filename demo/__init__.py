"""The embedded default: a small spoken world, its frozen backbones, and the scripts that made them."""

from undertone.rooms import one_copy

one_copy(__name__)
