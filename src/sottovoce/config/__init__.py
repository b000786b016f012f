"""Recipes: schema, checks, limits."""
