"""`sottovoce analyze`: layer-wise probes, similarities and logit lens of a bundle's LLM; probes of its encoder.

The five layer-wise analyses of PE-FT (Resurfacing Paralinguistic Awareness in Large Audio Language Models, 2026,
section 4), and the split of the layers that they propose.
"""

import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sottovoce.analysis.analyses import (
    Job,
    UtteranceStates,
    attributes,
    intent_words,
    intents,
    plan_analyses,
    plan_probes,
    run_analyses,
)
from sottovoce.analysis.config import AnalysisRecipe, load
from sottovoce.analysis.hidden_states import cached_encoder_states, cached_states
from sottovoce.data.examples import Example
from sottovoce.data.manifest import read_manifest
from sottovoce.data.own_attribute import choices_of
from sottovoce.data.utterance import Utterance
from sottovoce.device import on_device
from sottovoce.errors import ManifestError, MissingError
from sottovoce.evaluation.layers.html import layer_csv, layer_page
from sottovoce.evaluation.layers.plot import layer_picture
from sottovoce.evaluation.layers.split import LAYERS, RULE, Curve, Split, propose
from sottovoce.hub import bundle_folder, bundle_home
from sottovoce.io import atomic_write, file_sha256
from sottovoce.lightning_modules.bundle import WEIGHTS, fingerprints, read_bundle
from sottovoce.lightning_modules.speech_llm import SpeechLLM
from sottovoce.progress import Progress
from sottovoce.serving.chat import wording
from sottovoce.training.splits import build_tasks, read_splits

STATES, HEARD = "states.safetensors", "encoder_states.safetensors"
PICTURE, PAGE, TABLE = "layers.png", "layers.html", "layers.csv"


def analyze(bundle: str, config: str, overrides: Sequence[str] = ()) -> None:
    """The command. States are cached in the output folder; what is computed from them is made anew."""
    console, recipe = Console(), load(Path(config), overrides)
    out = Path(recipe.out) if recipe.out else bundle_home(bundle) / "analysis"
    trusted = ["llm.trust_remote_code=true"] if recipe.trust_remote_code else []
    folder = bundle_folder(bundle)
    module = read_bundle(folder, [*recipe.recipe, *trusted])
    utterances = analysed_utterances(module, recipe)
    attributes(utterances, recipe)  # names that match nothing are refused before the work
    intents(utterances, recipe)
    instruction = wording(module, recipe.task) if recipe.instruction is None else recipe.instruction
    examples = [_example(module, utterance, instruction) for utterance in utterances]
    model = {**fingerprints(module), "trained": file_sha256(folder / WEIGHTS)}
    for name, slot in module.recipe.slots.items():  # which layers are heard is no weight
        if (slot.layers, slot.layer_norm) != ("last", False):
            model[f"slots.{name}"] = f"{slot.layers} {slot.layer_norm}"
    with Progress(console=console) as progress:
        heard: dict[str, Job] = {}
        with on_device(module):
            states = cached_states(module, examples, model, out / STATES, recipe.batch_size, progress)
            if recipe.encoder and module.encoder.depth:
                encoded = cached_encoder_states(module, examples, model, out / HEARD, progress)
                heard = plan_probes(utterances, encoded.numpy(), recipe)
        vocabulary = module.llm.model.get_output_embeddings().weight.shape[0]  # type: ignore[no-untyped-call]
        jobs = plan_analyses(UtteranceStates(utterances, states, vocabulary), recipe)
        curves, left_out = run_analyses(jobs, progress)
        encoder, _ = run_analyses(heard, progress)  # what is left out is left out of both
    split = propose(curves)
    report = layer_report(curves, left_out, split, examples, intent_words(recipe))
    report |= {"model": model, "analysis": recipe.plain()}
    report["encoder"] = {"layers": module.encoder.depth, "curves": {name: asdict(c) for name, c in encoder.items()}}
    out.mkdir(parents=True, exist_ok=True)
    try:
        layer_picture(curves, split, left_out, out / PICTURE, encoder)
        picture = (out / PICTURE).read_bytes()
    except MissingError as error:  # matplotlib is an extra: the page has tables alone
        console.print(str(error), style="yellow", markup=False)
        picture = None
    atomic_write(out / PAGE, layer_page(report, curves, picture, encoder))
    atomic_write(out / TABLE, layer_csv(curves, encoder))
    atomic_write(out / LAYERS, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    _print_summary(console, curves, left_out, split, encoder)
    for name in (LAYERS, TABLE, *([PICTURE] if picture else []), PAGE):
        console.print(f"written  {out / name}", highlight=False, soft_wrap=True)


def analysed_utterances(module: SpeechLLM, recipe: AnalysisRecipe) -> list[Utterance]:
    """The utterances with speaker and words, and not more than the recipe's limit; ManifestError if none is left."""
    if recipe.manifest:
        choices, policy = choices_of(build_tasks(module.recipe)), module.recipe.data.policy
        root, allow = Path(recipe.root) if recipe.root else None, [Path(folder) for folder in recipe.allow]
        manifest = read_manifest(Path(recipe.manifest), choices=choices, policy=policy, root=root, allow=allow)
        utterances, source = manifest.utterances, recipe.manifest
    else:
        utterances = read_splits(module.recipe).splits[recipe.split].utterances
        source = f"the split {recipe.split!r} of the bundle's recipe"
    known = [u for u in utterances if u.audio and u.speaker and u.text]  # the others could be on both sides of a probe
    if not known:
        message = f"nothing to analyse: no utterance of {source} has a speaker and words (`speaker`, `text`)"
        raise ManifestError(message, code="empty", where=recipe.manifest or recipe.split)
    return _limited(known, recipe.limit, recipe.seed)


def _limited(utterances: list[Utterance], limit: int | None, seed: int) -> list[Utterance]:
    """Whole texts, in an order drawn once, until there is no room for the next; in the order of the manifest."""
    counts = Counter(str(u.text) for u in utterances)
    texts = sorted(counts)
    random.Random(seed).shuffle(texts)
    taken: set[str] = set()
    room = len(utterances) if limit is None else limit
    for text in texts:
        if counts[text] <= room:
            taken.add(text)
            room -= counts[text]
    return [u for u in utterances if u.text in taken]


def _example(module: SpeechLLM, utterance: Utterance, instruction: str) -> Example:
    """Speech in every slot, without the context of a dialogue: only voices and words are to differ."""
    alone, sources = replace(utterance, context=()), dict.fromkeys(module.slots, "speech")
    return Example(alone, "analysis", instruction, (), sources, frozenset(), None, module.recipe.instructions)


def layer_report(
    curves: Mapping[str, Curve], left_out: Mapping[str, str], split: Split, heard: Sequence[Example], intent: str
) -> dict[str, Any]:
    """The content of `layers.json`, but for the model and the recipe."""
    return {
        "layers": split.layers,
        "paralinguistic": list(split.paralinguistic),
        "semantic": list(split.semantic),
        "by_the_curves": {"transition": split.transition, "end": split.end},
        "words": split.words,
        "rule": RULE,
        "signals": {"paralinguistic": split.voice, "semantic": split.meaning},
        "curves": {name: asdict(curve) for name, curve in curves.items()},
        "left_out": dict(left_out),
        "heard": {
            "utterances": len(heard),
            "speakers": len({e.utterance.speaker for e in heard}),
            "texts": len({e.utterance.text for e in heard}),
            "instruction": heard[0].instruction,
            "intent": intent,
        },
    }


def _print_summary(
    console: Console,
    curves: Mapping[str, Curve],
    left_out: Mapping[str, str],
    split: Split,
    encoder: Mapping[str, Curve],
) -> None:
    table = Table("analysis", "input of the LLM", "best layer", "last layer", "chance")
    for name, curve in curves.items():
        best = max(range(split.layers), key=lambda layer: curve.value[1 + layer])
        first, highest, last = (_cell(curve, state) for state in (0, 1 + best, split.layers))
        table.add_row(name, first, f"{best}: {highest}", last, f"{curve.chance[0]:.3g}")
    console.print(table)
    if encoder:
        table = Table("encoder", "input of its layers", "best layer", "last layer", "chance")
        for name, curve in encoder.items():
            final = len(curve.value) - 1
            best = max(range(1, final + 1), key=lambda layer: curve.value[layer])
            table.add_row(
                name, _cell(curve, 0), f"{best}: {_cell(curve, best)}", _cell(curve, final), f"{curve.chance[0]:.3g}"
            )
        console.print(table)
    for name, reason in left_out.items():
        console.print(f"left out  {name}: {reason}", markup=False, highlight=False)
    voice, meaning = ("{}-{}".format(*layers) for layers in (split.paralinguistic, split.semantic))
    console.print(f"split    paralinguistic {voice}, semantic {meaning}, of 0-{split.layers - 1}")
    console.print(f"         {split.words}", markup=False, highlight=False)


def _cell(curve: Curve, state: int) -> str:
    return f"{curve.value[state]:.3f} [{curve.low[state]:.3f}, {curve.high[state]:.3f}]"
