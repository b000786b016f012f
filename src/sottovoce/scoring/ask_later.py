"""Judges that cannot be asked now: the command that asks them later."""

from pathlib import Path

from sottovoce.config.recipe import Recipe


def own_scores(recipe: Recipe) -> Path:
    """The folder of a run's scores on its own test side, after its last stage."""
    return recipe.folder / "evaluation"


def later(recipe: Recipe, folder: Path, override: str) -> str:
    """The command that asks a judge later; `judge` knows the scores of a run alone, and not those of other data."""
    return f"sottovoce judge {recipe.folder} {override}" if folder == own_scores(recipe) else f"this one, {override}"
