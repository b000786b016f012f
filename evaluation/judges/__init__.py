"""Judges of replies: LLMs by a rubric, and nearest exemplars."""
