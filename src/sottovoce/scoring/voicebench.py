"""VoiceBench of a run: spoken prompts answered before the LLM is tuned and after, scored, and judged now or later."""

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor

from sottovoce.config.recipe import Recipe
from sottovoce.config.sections import VoiceBenchConfig
from sottovoce.data.examples import Example, collate
from sottovoce.data.manifest import read_manifest
from sottovoce.data.utterance import Utterance
from sottovoce.device import on_device
from sottovoce.errors import MissingError, SottovoceError
from sottovoce.evaluation.judges.voicebench import VoiceBenchJudge
from sottovoce.evaluation.records import Record
from sottovoce.evaluation.voicebench import KINDS, TASK
from sottovoce.evaluation.voicebench.answers import pedant
from sottovoce.evaluation.voicebench.scores import Answer, Part, measures, part_of, read_answers, write_answers
from sottovoce.lightning_modules.run import Run
from sottovoce.lightning_modules.trainer import is_rank_zero
from sottovoce.llms import ENGINES
from sottovoce.llms.answer_cache import CachedEngine
from sottovoce.paths import usable
from sottovoce.progress import Progress
from sottovoce.scoring.ask_later import later
from sottovoce.training.audio_reader import AudioReader
from sottovoce.training.spoken_prompt import dialogue_of

BEFORE, AFTER = "voicebench-before.jsonl", "voicebench.jsonl"  # answers, in a run's folder of scores
JUDGEMENTS = "voicebench-judgements.jsonl"  # cache of the judge's answers, beside them
_KEPT = ("original_id", "instruction_id_list", "kwargs")  # of a row's further fields, what its scorer reads
_WHERE = "evaluation.voicebench.manifests"

Prompt = tuple[str, Utterance, dict[str, Any]]  # subset, what is spoken, fields
_log = logging.getLogger(__name__)


def untuned_weights(run: Run) -> dict[str, Tensor] | None:
    """What some stage trains, as it is before the first, where VoiceBench is to be answered with it; else None.

    They are small, or fit the memory once more: answering before the training would let other processes wait for hours.

    Raises:
        MissingError: the recipe names manifests that are not there.
    """
    node = run.recipe.evaluation.voicebench
    if node is None:
        return None
    manifests(node)
    if not run.recipe.trains_llm or not is_rank_zero():
        return None
    return {name: value.detach().cpu().clone() for name, value in run.module.trained().items()}


def voicebench(run: Run, system: str, folder: Path, untuned: Mapping[str, Tensor] | None) -> list[Record]:
    """Let the model answer, with its weights of now and then with `untuned` ones, and score that.

    What fails is reported, and costs these scores alone. The model leaves with the weights that it came with.
    """
    node = run.recipe.evaluation.voicebench
    if node is None:
        return []
    for name in (AFTER, BEFORE):  # of an earlier evaluation
        (folder / name).unlink(missing_ok=True)
    try:
        prompts = list(read_prompts(node))
        with on_device(run.module):
            answers = _answers(run, node, prompts)
            if untuned is not None:
                tuned = {name: value.detach().cpu().clone() for name, value in run.module.trained().items()}
                run.module.load_trained(dict(untuned), "the run's beginning")
                try:
                    write_answers(folder / BEFORE, _answers(run, node, prompts))
                finally:
                    run.module.load_trained(tuned, "the run's own weights")
        write_answers(folder / AFTER, answers)  # last: where it is, all of it has been answered
    except SottovoceError as error:
        _log.warning(f"{TASK}: {error}")
        return []
    return scored(system, run.recipe, folder, run.console)


def manifests(node: VoiceBenchConfig) -> dict[str, list[Path]]:
    """The manifests of each subset, in the leaderboard's order; those that are not there are left out.

    `alpacaeval` is the full one, as on the leaderboard, where that is there; SD-QA has the accents that the recipe
    names.

    Raises:
        MissingError: there is none.
    """
    folder = usable(node.manifests)
    names = {subset: [folder / f"{subset}.jsonl", *sorted(folder.glob(f"{subset}-*.jsonl"))] for subset in KINDS}
    full, base = folder / "alpacaeval_full.jsonl", folder / "alpacaeval.jsonl"
    names["alpacaeval"] = [full if full.is_file() else base]
    names["sd-qa"] = [folder / f"sd-qa-{accent}.jsonl" for accent in node.accents]
    found = {
        subset: [file for file in files if file.is_file() and not file.name.endswith(".fields.jsonl")]
        for subset, files in names.items()
    }
    if not any(found.values()):
        told = f"{folder} has no manifest of VoiceBench: sottovoce prepare voicebench --source … --out {folder}"
        raise MissingError.at(_WHERE, "not-found", told)
    return {subset: files for subset, files in found.items() if files}


def read_prompts(node: VoiceBenchConfig) -> Iterator[Prompt]:
    """The prompts of every subset, or `limit` of each, spread evenly over it.

    Raises:
        MissingError: there are no manifests.
        SottovoceError: a manifest or the fields beside it are damaged.
    """
    for subset, files in manifests(node).items():
        rows: list[Prompt] = []
        for file in files:
            fields = _fields(file.with_suffix(".fields.jsonl"))
            manifest = read_manifest(file, choices={}, allow=[Path("/")])
            rows += [(subset, u, fields.get(u.id, {})) for u in manifest.utterances]
        step = max(1.0, len(rows) / node.limit) if node.limit else 1.0
        yield from (rows[int(i * step)] for i in range(min(node.limit or len(rows), len(rows))))


def _fields(file: Path) -> dict[str, dict[str, Any]]:
    if not file.is_file():
        return {}
    try:
        rows = [json.loads(line) for line in file.read_text("utf-8").split("\n") if line]
        return {row["id"]: {key: row[key] for key in _KEPT if key in row} for row in rows}
    except (ValueError, TypeError, KeyError) as error:
        raise SottovoceError.at(file, "damaged", f"not the fields of VoiceBench's rows: {error}") from None


def _answers(run: Run, node: VoiceBenchConfig, prompts: list[Prompt]) -> list[Answer]:
    """Answers to speech alone, without an instruction, in batches of like length; clips that are faulty are left out.

    The encoder's outputs are not kept: those of 8,000 clips would fill tens of gigabytes.
    """
    reader = AudioReader(run.module.encoder, None, run.recipe.data.max_seconds)
    sources = dict.fromkeys(run.slots, "speech")
    found: dict[str, Answer] = {}
    with run.progress() as progress:
        faults = reader.prepare(run.module.encoder, [u.clip for _, u, _ in prompts], progress)
        if faults:
            told = f"{TASK}: {len(faults)} of {len(prompts)} prompts cannot be heard and are left out: {faults[0]}"
            _log.warning(told)
        bad = {Path(fault.where) for fault in faults}
        asked = sorted((p for p in prompts if p[1].audio not in bad), key=lambda prompt: prompt[1].seconds)
        size = run.recipe.evaluation.batch_size
        for start in progress.track(range(0, len(asked), size), description=TASK, unit="batch"):
            rows = asked[start : start + size]
            examples = [Example(u, TASK, "", (), sources, frozenset(), target="") for _, u, _ in rows]
            batch = collate(examples, reader.read).to(run.module.device)
            chats = [dialogue_of(example, run.slots) for example in examples]
            said = run.module.generate(batch, chats, node.max_new_tokens)
            for (subset, u, fields), text in zip(rows, said, strict=True):
                found[u.id] = Answer(u.id, subset, u.text or "", text, u.response, fields)
    return [found[u.id] for _, u, _ in prompts if u.id in found]


def scored(system: str, recipe: Recipe, folder: Path, console: Console) -> list[Record]:
    """Records of the answers in a folder, judged first where the recipe has an engine; what fails is reported.

    A subset that cannot be scored costs its own score, and the overall score.
    """
    node = recipe.evaluation.voicebench
    if node is None or not (folder / AFTER).is_file():
        return []
    sides: list[dict[str, Part]] = []
    try:
        panda = pedant() if node.panda == "pedant" else None
        for file in (folder / AFTER, folder / BEFORE):
            answers = _judged(node, folder, file, console) if file.is_file() else []
            parts: dict[str, Part] = {}
            for subset in dict.fromkeys(answer.subset for answer in answers):
                try:
                    parts[subset] = part_of(subset, [a for a in answers if a.subset == subset], panda)
                except SottovoceError as error:
                    _log.warning(f"{TASK}, {subset}: {error}")
            sides.append(parts)
    except SottovoceError as error:
        _log.warning(f"{TASK}: {error}")
        return []
    after, before = sides
    if missing := [name for name in KINDS if name not in after or not after[name].main]:
        told = f"{TASK}: no overall score, for {', '.join(missing)} has none"
        if any(KINDS[name] in ("open", "qa") for name in missing if name in after):
            engine = "evaluation.voicebench.engine='{type: openai, base_url: …, model: …}'"
            told += f". Once a judge can be asked: {later(recipe, folder, engine)}"
        _log.warning(told)
    found = measures(after, before or None)
    return [Record(system, task, metric, "both", **m.score()._asdict()) for (task, metric), m in found.items()]


def _judged(node: VoiceBenchConfig, folder: Path, file: Path, console: Console) -> list[Answer]:
    """The answers of a file with their judgements, which are kept in it; as they are where nobody can be asked."""
    answers = read_answers(file)
    if node.engine is None:
        return answers
    try:
        with Progress(console=console, transient=True) as progress:
            engine = CachedEngine(ENGINES.build(node.engine), folder / JUDGEMENTS, progress)
            judge = VoiceBenchJudge(engine, open_rubric=node.open_rubric, qa_rubric=node.qa_rubric)
            done = judge.judge(answers)
    except SottovoceError as error:
        _log.warning(f"{TASK}, judge: {error}")
        return answers
    if done.notes():
        _log.warning(f"{TASK}, judge: {done.notes()}")
    if not any(answer.judged for answer in done.answers):  # earlier judgements are worth more than none
        return answers
    write_answers(file, done.answers)
    return done.answers
