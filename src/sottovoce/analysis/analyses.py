"""The five layer-wise analyses: which of them the utterances' labels allow, and the inputs of each."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, NoReturn

from sottovoce.analysis.config import AnalysisRecipe
from sottovoce.data.utterance import Utterance
from sottovoce.errors import ConfigError, SottovoceError, nearest
from sottovoce.evaluation.layers.probes import States, attribute_probe, intent_probe, lens_agreement
from sottovoce.evaluation.layers.similarity import attribute_similarity, intent_similarity
from sottovoce.evaluation.layers.split import Curve
from sottovoce.llms.hidden_states import HiddenStates
from sottovoce.progress import Progress
from sottovoce.scripts import searched, standing

TOPIC = "topic"
Job = Callable[[], Curve]


class LabelledStates(NamedTuple):
    """Rows whose label is known: states (rows, states, dim), and (rows,) of everything else."""

    states: States
    labels: list[str]
    speakers: list[str]
    texts: list[str]


@dataclass(frozen=True)
class UtteranceStates:
    """Utterances with speaker and words, the LLM's states for them, row by row, and the size of its vocabulary."""

    utterances: Sequence[Utterance]
    states: HiddenStates
    vocabulary: int

    def labelled(self, labels: Sequence[str | None]) -> LabelledStates:
        """The rows that have a label."""
        return labelled_states(self.utterances, self.states.pooled.numpy(), labels)


def labelled_states(utterances: Sequence[Utterance], pooled: States, labels: Sequence[str | None]) -> LabelledStates:
    """The rows of states (utterances, states, dim) that have a label."""
    rows = [row for row, label in enumerate(labels) if label is not None]
    known = [utterances[row] for row in rows]
    speakers, texts = [str(u.speaker) for u in known], [str(u.text) for u in known]
    states = pooled if len(rows) == len(pooled) else pooled[rows]
    return LabelledStates(states, [label for label in labels if label is not None], speakers, texts)


def run_analyses(jobs: Mapping[str, Job], progress: Progress) -> tuple[dict[str, Curve], dict[str, str]]:
    """Every analysis that the data allow, by name; and why the others are left out."""
    curves, left_out = {}, {}
    for name in progress.track(list(jobs), description="analysing"):
        try:
            curves[name] = jobs[name]()
        except SottovoceError as error:
            left_out[name] = str(error)
    return curves, left_out


def plan_probes(utterances: Sequence[Utterance], pooled: States, recipe: AnalysisRecipe) -> dict[str, Job]:
    """The linear probes of states (utterances, states, dim), of an LLM or an encoder; see `plan_analyses`."""
    seed = recipe.seed
    known = {
        name: labelled_states(utterances, pooled, [u.labels.get(name) for u in utterances])
        for name in attributes(utterances, recipe)
    }
    jobs: dict[str, Job] = {
        f"{name} probe": partial(attribute_probe, *each[:3], folds=recipe.folds, seed=seed)
        for name, each in known.items()
    }
    intended = labelled_states(utterances, pooled, intents(utterances, recipe))
    probe = partial(intent_probe, *intended, folds=recipe.intent_folds, seed=seed)
    return {**jobs, "intent probe": probe if intended.labels else _without_intent}


def plan_analyses(read: UtteranceStates, recipe: AnalysisRecipe) -> dict[str, Job]:
    """The analyses by name, in the order of the paper, ready to be run; see `attributes` and `intents`."""
    names, seed = attributes(read.utterances, recipe), recipe.seed
    known = {name: read.labelled([u.labels.get(name) for u in read.utterances]) for name in names}
    intended = read.labelled(intents(read.utterances, recipe))
    jobs = plan_probes(read.utterances, read.states.pooled.numpy(), recipe)
    similar = partial(intent_similarity, *intended, seed=seed)
    jobs["intent similarity"] = similar if intended.labels else _without_intent
    jobs |= {f"{name} similarity": partial(attribute_similarity, *known[name], seed=seed) for name in names}
    jobs["logit lens"] = partial(
        lens_agreement, read.states.ranks.numpy(), read.states.tokens.tolist(),
        [str(u.text) for u in read.utterances], vocabulary=read.vocabulary, seed=seed,
    )  # fmt: skip
    return jobs


def _without_intent() -> NoReturn:
    raise SottovoceError(
        "no utterance has a topic: give the manifest's lines a `topic`, or name a label as `intent`, or `keywords`",
        code="empty", where="intent",
    )  # fmt: skip


def attributes(utterances: Sequence[Utterance], recipe: AnalysisRecipe) -> list[str]:
    """The labels to probe: those that the recipe names, or all that have two values and are not the intent.

    A label that no utterance has is a ConfigError, here and in `intents`.
    """
    values: dict[str, set[str]] = defaultdict(set)
    for name, label in (pair for utterance in utterances for pair in utterance.labels.items()):
        values[name].add(label)
    if recipe.attributes is None:
        return sorted(name for name, labels in values.items() if len(labels) > 1 and name != recipe.intent)
    for name in recipe.attributes:
        if name not in values:
            message = f"attributes: no utterance has the label {name!r}.{nearest(name, values)}"
            raise ConfigError(message, code="unknown-name", where="attributes")
    return list(dict.fromkeys(recipe.attributes))


def intents(utterances: Sequence[Utterance], recipe: AnalysisRecipe) -> list[str | None]:
    """What each utterance is about, None where that is not known."""
    if recipe.keywords:
        of_each = [_keyword(u, set(recipe.keywords)) for u in utterances]
        if not any(of_each):
            told = f"no text has exactly one of {', '.join(recipe.keywords[:5])}, ..."
            raise ConfigError.at("keywords", "empty", told)
        return of_each
    if recipe.intent == TOPIC:
        return [u.topic for u in utterances]
    of_each = [u.labels.get(recipe.intent) for u in utterances]
    if not any(of_each):
        known = [TOPIC, *{name for u in utterances for name in u.labels}]
        message = f"intent: no utterance has the label {recipe.intent!r}.{nearest(recipe.intent, known)}"
        raise ConfigError(message, code="unknown-name", where="intent")
    return of_each


def _keyword(utterance: Utterance, keywords: set[str]) -> str | None:
    by_spelling = {searched(keyword): keyword for keyword in keywords}
    present = {match["text"] for match in standing(list(by_spelling)).finditer(searched(utterance.text or ""))}
    return by_spelling[present.pop()] if len(present) == 1 else None


def intent_words(recipe: AnalysisRecipe) -> str:
    """Where intents come from, in words."""
    if recipe.keywords:
        return f"which of these words the text has: {', '.join(recipe.keywords)}"
    return "the topic of the manifest" if recipe.intent == TOPIC else f"the label {recipe.intent!r}"
