"""Utterances, dialogues, tasks and prompts, audio, synthesis, and the batches made of them."""

from undertone.rooms import one_copy

one_copy(__name__)
