"""The data side of a run: splits, clips, prompts, targets, the run folder."""
