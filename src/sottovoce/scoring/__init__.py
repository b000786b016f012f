"""Scores of a trained model: answers, judges, text retention."""
