"""Drives: every published recipe through its documented commands, on parts and corpora in miniature."""
