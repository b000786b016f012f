"""`sottovoce table`: train or reuse every system with every seed, and print how they compare.

Kang et al. (2024), table I and section V-C.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from safetensors.torch import load_file, save_file
from torch import Tensor

from sottovoce.comparison.table_config import TableRecipe, load, overrides, system_recipe
from sottovoce.config.recipe import Recipe
from sottovoce.data.utterance import Utterance
from sottovoce.evaluation import JUDGES, Judge, Prediction, Reply, Score, Verdict, read_predictions
from sottovoce.evaluation.linear_probe import probe
from sottovoce.evaluation.metrics import accuracy
from sottovoce.evaluation.reports.plots import tsne_picture
from sottovoce.evaluation.reports.systems_table import Cell, Comparison, comparison_table, write_comparison
from sottovoce.evaluation.text_similarity import ROUGE, BertScore
from sottovoce.lightning_modules.bundle import read_bundle
from sottovoce.lightning_modules.distributed import is_rank_zero
from sottovoce.lightning_modules.fit import fit
from sottovoce.llms import ENGINES
from sottovoce.llms.answer_cache import CachedEngine
from sottovoce.scoring.speech_tokens import pooled_tokens
from sottovoce.training.run_folder import check_folder
from sottovoce.training.splits import read_splits

EMOTION, RESPONSE, HEARD = "emotion", "response", "both"  # tasks, and the choice of slots that is compared
PICTURE = "tokens.png"


def table(config: str, changes: Sequence[str] = ()) -> None:
    """The command. What is there already is used; the same command again goes on where it stopped."""
    console = Console(quiet=not is_rank_zero())
    recipe = load(Path(config), changes)
    for seed in recipe.seeds:
        for name in recipe.systems:
            made = system_recipe(recipe, name, seed)
            if not _is_finished(made):
                console.rule(made.name)
                fit(recipe.systems[name].recipe, overrides(recipe, seed))
    page = compare(recipe, console)
    write_comparison(recipe.folder, page)
    console.print(comparison_table(page))
    drawn = draw(recipe)
    for file in (recipe.folder / "table.md", recipe.folder / "table.json", *([drawn] if drawn else [])):
        console.print(f"written  {file}", highlight=False)


def _is_finished(recipe: Recipe) -> bool:
    """Whether the run of this very recipe has been scored; a folder of another recipe is an error."""
    check_folder(recipe.folder, recipe.plain())
    return (recipe.folder / "evaluation" / "results.json").is_file()


def compare(recipe: TableRecipe, console: Console) -> Comparison:
    """Score what all systems said."""
    scorer = Scorer(recipe, console)
    cells = [cell for seed in recipe.seeds for name in recipe.systems for cell in scorer.cells(name, seed)]
    titles = {name: system.title for name, system in recipe.systems.items()}
    paper = {name: system.paper for name, system in recipe.systems.items() if system.paper}
    return Comparison(recipe.name, titles, cells, paper, scorer.remarks(cells))


class Scorer:
    """Scores runs by one judge, one BERTScore model and one split of the data.

    Args:
        recipe: of the table.
        console: shows how far a judge is.
    """

    def __init__(self, recipe: TableRecipe, console: Console) -> None:
        self.recipe = recipe
        node = recipe.bert_score
        self.bert = BertScore(node.checkpoint, layer=node.layer) if node else None
        engine = ENGINES.build(recipe.engine) if recipe.engine else None
        progress = Progress(console=console)
        kept = CachedEngine(engine, recipe.folder / "judgements.jsonl", progress) if engine else None
        self.judge: Judge = JUDGES.build(recipe.judge, kept)

    def cells(self, name: str, seed: int) -> Iterator[Cell]:
        """Every score of one run."""
        made = system_recipe(self.recipe, name, seed)
        for column, score in self._scores(made, self.recipe.systems[name].probe).items():
            yield Cell(name, seed, column, score.value, score.low, score.high, score.n, score.notes)

    def _scores(self, made: Recipe, probed: bool) -> dict[str, Score]:
        said = [p for p in read_predictions(made.folder / "evaluation") if p.slots == HEARD]
        replies = [p for p in said if p.task == RESPONSE]
        scores = {name: metric(replies) for name, metric in ROUGE.items()}
        if self.bert:
            scores["bert_score"] = self.bert(replies)
        splits = {name: split.utterances for name, split in read_splits(made).splits.items()}
        for aspect, verdict in self.judge.judge(_judged(replies, splits["test"])).items():
            scores |= {str(aspect): score for score in _score(verdict)}
        scores["ser"] = accuracy([p for p in said if p.task == EMOTION])
        if probed:
            scores["probe"] = self._probe(made, splits["train"], splits["test"])
        return scores

    def _probe(self, made: Recipe, train: Sequence[Utterance], test: Sequence[Utterance]) -> Score:
        """A probe that learns from the training side and is tested on the test side, whose speakers are others."""
        heard = [*_labelled(train)[: self.recipe.probe_train], *_labelled(test)]
        held_out = [False] * (len(heard) - len(_labelled(test))) + [True] * len(_labelled(test))
        tokens = _tokens(made, heard)
        labels, speakers = [u.labels[EMOTION] for u in heard], [str(u.speaker) for u in heard]
        return probe(tokens.numpy(), labels, speakers, held_out=held_out).accuracy

    def remarks(self, cells: Sequence[Cell]) -> list[str]:
        """Who judged, and every score that lacks something."""
        notes = (f"{c.system}, seed {c.seed}, {c.column}: {c.notes}" for c in cells if c.notes and c.column in ASPECTS)
        model = [f"BERTScore by {self.bert.name}, layer {self.bert.layer}."] if self.bert else []
        return [f"Judge: {self.judge.name}.", *model, *notes]


ASPECTS = ("quality", "emotion")


def _judged(replies: Sequence[Prediction], utterances: Sequence[Utterance]) -> list[Reply]:
    spoken = {u.id: u for u in utterances}
    return [Reply(spoken[p.id].text or "", p.label or "", p.response) for p in replies]


def _score(verdict: Verdict) -> list[Score]:
    """None where not one reply could be judged, of which the notes speak."""
    if verdict.mean is None or verdict.interval is None:
        return []
    judged = sum(score is not None for score in verdict.scores)
    return [Score(verdict.mean, *verdict.interval, judged, None, verdict.notes())]


def _labelled(utterances: Sequence[Utterance]) -> list[Utterance]:
    return [u for u in utterances if EMOTION in u.labels]


def _tokens(made: Recipe, utterances: Sequence[Utterance]) -> Tensor:
    """Mean speech tokens, (utterances, dim), kept in the run's folder."""
    file = made.folder / "evaluation" / f"tokens-{len(utterances)}.safetensors"
    if not file.is_file():
        trusted = ["llm.trust_remote_code=true"] if made.llm.trust_remote_code else []
        tokens = pooled_tokens(read_bundle(made.folder / "bundle", trusted), utterances)
        draft = file.with_suffix(".tmp")
        save_file({"tokens": tokens}, draft)
        os.replace(draft, file)
    return load_file(file)["tokens"]


def draw(recipe: TableRecipe) -> Path | None:
    """Figure 2: the speech tokens of the test side, coloured by emotion; None where no system is to be drawn."""
    panels = {}
    for name in recipe.picture:
        made = system_recipe(recipe, name, recipe.seeds[0])
        test = _labelled(read_splits(made).splits["test"].utterances)
        panels[recipe.systems[name].title] = (_tokens(made, test).numpy(), [u.labels[EMOTION] for u in test])
    if not panels:
        return None
    tsne_picture(panels, recipe.folder / PICTURE)
    return recipe.folder / PICTURE
