"""Utterances, dialogues, tasks and prompts, audio, synthesis, and the batches made of them."""
