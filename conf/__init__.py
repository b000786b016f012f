"""Recipes."""

from undertone.rooms import one_copy

one_copy(__name__)
