"""Predictions on the test side: an answer to every task under every choice of slots."""

import logging
import os
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sottovoce.config.recipe import used_tasks
from sottovoce.data.examples import NOTHING, Batch, Example, spoken_clips
from sottovoce.data.few_shot import few_shot_turns
from sottovoce.data.own_attribute import build_task
from sottovoce.data.tasks import AttributeTask, style_caption, task_of
from sottovoce.data.utterance import Utterance
from sottovoce.errors import ConfigError, ManifestError, brief
from sottovoce.evaluation.metrics import Prediction
from sottovoce.frames import Frames
from sottovoce.lightning_modules.run import Run
from sottovoce.progress import Progress
from sottovoce.scoring.cascade import TASK, emotion_tags
from sottovoce.scoring.shared_answers import Row, SharedAnswers
from sottovoce.training.spoken_prompt import SpeechPlaceholder, dialogue_of

GROUPS = 4  # of clips whose speech is kept
Rivals = dict[tuple[str, str], dict[str, str]]  # (task, utterance) -> emotion -> reply
_log = logging.getLogger(__name__)


class Asked(NamedTuple):
    """What is asked on one side of the data, the same in every process."""

    run: Run  # with the tasks and slots of the evaluation
    tagged: list[Row]  # that a cascade's tag answers
    rows: list[Row]  # by likeness, that the model is to answer
    rivals: Rivals


def predict(run: Run, split: str = "test", *, unlabelled: bool = False, folder: Path | None = None) -> list[Prediction]:
    """Every answer that is to be scored, and with `unlabelled` those that cannot be. Nothing of the run is changed.

    Answers are kept in `folder`, if there is one, where other processes may give some of them, see `answer_share`.

    Raises:
        ManifestError: there is none to give.
    """
    with run.progress() as progress:
        asked = _asked(run, split, progress, unlabelled=unlabelled)
        responses = _responses(asked, progress, SharedAnswers(asked.run, folder) if folder else None)
    told = [(*row, row[1].tag or "") for row in asked.tagged]
    told += [(*row, response) for row, response in zip(asked.rows, responses, strict=True)]
    told.sort(key=lambda row: (row[0], row[1].task, row[1].utterance.seconds))
    predictions = [_prediction(asked.run, *row, asked.rivals) for row in told]
    names = run.data.splits[split].names
    return [replace(prediction, source=names.get(prediction.id)) for prediction in predictions]


def answer_share(run: Run, folder: Path, is_over: Callable[[], bool]) -> None:
    """Answer rows of the test side for the process that scores them into `folder`, until all are taken."""
    with run.progress() as progress:
        asked = _asked(run, "test", progress)
        _responses(asked, progress, SharedAnswers(asked.run, folder, is_over))


def _asked(run: Run, split: str, progress: Progress, *, unlabelled: bool = False) -> Asked:
    """All that is asked; the targets that it is held against are made first."""
    recipe, data = run.recipe, run.data.splits[split]
    overrides = recipe.evaluation.task_overrides.items()
    changed = {name: build_task(name, {**recipe.tasks[name], **knobs}) for name, knobs in overrides}
    run = replace(run, tasks={**run.tasks, **changed}, slots={**run.slots, **recipe.evaluation.text})
    examples = [example for utterance in data.utterances for example in _questions(run, utterance, unlabelled)]
    if not examples:
        told = f"nothing to score: no utterance of {split!r} has what the tasks need"
        raise ManifestError(told, code="empty", where=f"data.{split}")
    examples = _limited(examples, recipe.evaluation.limit, data.names)
    unmade = [example for example in examples if example.target is None]
    unreadable = {id(example) for example in unmade if _tokens(run, example, teacher=True) is None}
    examples = [example for example in examples if id(example) not in unreadable]
    tags = emotion_tags(run, split) if recipe.cascade else {}
    rivals = _rivals(run, examples, progress)
    made = run.targets.make(run.module.llm, examples, progress)
    if made.rejected:
        told = f"{split}: {made.told(recipe.target_max_new_tokens)}"
        _log.warning(told)
        examples = [e for e in examples if (e.task, e.utterance.id) not in made.rejected]
    complete = [run.targets.complete(example) for example in examples]
    rows = [
        (mode, _with_slots(example, mode, tags))
        for mode in recipe.modes
        for example in complete
        if mode == "both" or _serves(run, example)
    ]
    sizes = [(row[1].utterance.id, _tokens(run, row[1])) for row in rows]
    bad = {name for name, tokens in sizes if tokens is None}  # under all choices of slots, to compare them
    rows = [row for row in rows if row[1].utterance.id not in bad]
    tagged = [row for row in rows if row[1].tag and row[1].task == TASK]  # the cascade's own task: its tag answers
    asked = [row for row in rows if not (row[1].tag and row[1].task == TASK)]
    longest: dict[str, int] = {}
    for name, tokens in sizes:
        longest[name] = max(longest.get(name, 0), tokens or 0)
    by_length = sorted(longest, key=lambda name: longest[name])
    chunk = {name: place // recipe.evaluation.batch_size for place, name in enumerate(by_length)}
    asked.sort(key=lambda row: (chunk[row[1].utterance.id], row[0], row[1].task, longest[row[1].utterance.id]))
    return Asked(run, tagged, asked, rivals)


def _serves(run: Run, example: Example) -> bool:
    """Whether its utterance has what its task is scored by."""
    task = task_of(run.tasks, example.task, example.utterance)
    return task.serves(example.utterance, run.slots.values())


def _tokens(run: Run, example: Example, *, teacher: bool = False) -> int | None:
    """Tokens of an example's prompt; None where the LLM cannot read it, which is then named, and counts as left out."""
    try:
        return run.row_lengths.check_example(example, run.slots, teacher=teacher)
    except ManifestError as fault:
        if str(fault) not in map(str, run.data.faults):
            run.data.faults.append(fault)
            _log.warning(f"left out  {fault}")
        return None


def _questions(run: Run, utterance: Utterance, unlabelled: bool) -> Iterator[Example]:
    """Each task that the utterance is good for, in one wording, with its whole context."""
    for task in run.recipe.evaluation.tasks or used_tasks(run.recipe):
        sampler = replace(run.example_sampler(None, cut=False), weights={task: 1.0}, slots=run.slots)
        if (example := sampler(utterance, 0, 0)) is not None:
            yield example
        elif unlabelled and (utterance.only is None or task in utterance.only):
            own, place = task_of(run.tasks, task, utterance), run.recipe.instructions
            wording, sources = own.instructions()[0], dict.fromkeys(run.slots, "speech")
            context = (*few_shot_turns(own, wording, place), *utterance.context)
            yield Example(utterance, task, wording, context, sources, frozenset(), target="", place=place)


def _limited(examples: list[Example], limit: int | None, names: dict[str, str]) -> list[Example]:
    """At most `limit` examples of each task and part of the test side, spread evenly over the test side."""
    if limit is None:
        return examples
    kept: list[Example] = []
    parts = {example.utterance.id: names.get(example.utterance.id) for example in examples}
    for task, part in dict.fromkeys((example.task, parts[example.utterance.id]) for example in examples):
        mine = [e for e in examples if (e.task, parts[e.utterance.id]) == (task, part)]
        step = max(1.0, len(mine) / limit)
        kept += [mine[int(i * step)] for i in range(min(limit, len(mine)))]
    return kept


def _with_slots(example: Example, mode: str, tags: dict[str, str]) -> Example:
    """`both` and `text` fill every slot alike; the name of a slot leaves only that slot its speech.

    A cascade's tag goes with the speech, and answers for the recognised attribute itself.
    """
    sources = {
        slot: {"both": "speech", "text": "text"}.get(mode, "speech" if slot == mode else "none")
        for slot in example.sources
    }
    tag = tags.get(example.utterance.id) if mode != "text" else None
    return replace(example, sources=sources, trains=frozenset(), tag=tag)


def _responses(asked: Asked, progress: Progress, shared: SharedAnswers | None) -> list[str]:
    """The model's answer to each row, generated in batches of like length."""
    run, rows, size = asked.run, asked.rows, asked.run.recipe.evaluation.batch_size
    answer = partial(_answer, run, ClipSpeech(run, [example for _, example in rows], size))
    if shared is not None:
        return shared.give(rows, size, answer, progress)
    starts = progress.track(range(0, len(rows), size), description="generating answers", unit="batch")
    return [response for start in starts for response in answer(rows[start : start + size])]


class ClipSpeech:
    """Clips as the LLM reads them: each goes through the encoder and the adapters once, not once a task.

    Groups of clips go through them together, the same ones whoever answers, so that answers do not depend on that.

    Args:
        run: whose module hears.
        examples: all that are asked, those of like clips beside each other.
        size: clips of a group.
    """

    def __init__(self, run: Run, examples: Sequence[Example], size: int) -> None:
        self._run = run
        clips = list(dict.fromkeys(spoken_clips(examples)))
        groups = [tuple(clips[start : start + size]) for start in range(0, len(clips), size)]
        self._group_of = {clip: group for group in groups for clip in group}
        self._slots = sorted({slot for e in examples for slot, source in e.sources.items() if source == "speech"})
        self._heard = lru_cache(maxsize=GROUPS)(self._hear)

    def batch(self, examples: list[Example]) -> Batch:
        """Examples with their speech."""
        clips = list(dict.fromkeys(spoken_clips(examples)))
        speech: dict[Hashable, Tensor] = {}
        for group in dict.fromkeys(self._group_of[clip] for clip in clips):
            speech |= self._heard(group)
        return Batch(examples, {clip: row for row, clip in enumerate(clips)}, NOTHING, speech=speech)

    def _hear(self, group: Sequence[Path]) -> dict[Hashable, Tensor]:
        module = self._run.module.eval()
        audio = Frames.pad([self._run.audio_reader.read(clip) for clip in group]).to(module.device)
        with torch.no_grad():
            frames = module.encoded(audio)
        read = {slot: module.adapt(slot, frames).rows() for slot in self._slots}
        return {SpeechPlaceholder(s, c, False): rows[at] for s, rows in read.items() for at, c in enumerate(group)}


def _answer(run: Run, speech: ClipSpeech, part: Sequence[Row]) -> list[str]:
    chats = [dialogue_of(example, run.slots) for _, example in part]
    try:
        batch = speech.batch([example for _, example in part])
        return run.module.generate(batch, chats, run.recipe.evaluation.max_new_tokens)
    except torch.OutOfMemoryError as error:
        why = f"out of memory with {len(part)} rows at once; the same command goes on with fewer, such as "
        why += f"evaluation.batch_size={max(1, len(part) // 4)}, and trains nothing again ({brief(error, 200)})"
        raise ConfigError.at("evaluation.batch_size", "bad-value", why) from None


def _prediction(run: Run, mode: str, example: Example, response: str, rivals: Rivals) -> Prediction:
    utterance = example.utterance
    task = task_of(run.tasks, example.task, utterance)
    category = utterance.category if task.generated else None  # paired data: the right answer hangs on it
    return Prediction(
        id=utterance.id,
        task=example.task,
        slots=mode,
        instruction=example.instruction,
        response=response,
        target=example.target or "",
        label=utterance.labels.get(category or "emotion") if task.generated else task.label(utterance),
        predicted=task.parse(response),
        speaker=utterance.speaker,
        rivals=dict(utterance.answers) if category else rivals.get((example.task, utterance.id)),
        category=category,
        topic=utterance.topic if category else None,
        unscored=not _serves(run, example),
        metric=task.rate,
        audio=shown_clip(utterance.audio, run.recipe.folder),
        text=utterance.text,
    )


def shown_clip(clip: Path | None, folder: Path) -> str | None:
    """A clip as predictions have it: relative to the run's folder where it lies in that, which may be moved."""
    if clip is None:
        return None
    path, home = os.path.abspath(clip), os.path.abspath(folder)
    return os.path.relpath(path, home) if path.startswith(home + os.sep) else path


def _rivals(run: Run, examples: list[Example], progress: Progress) -> Rivals:
    """For each reply, the LLM's own to the same words in every emotion: the yardstick of `emotion_fit`."""
    if "emotion" not in run.tasks:
        return {}
    asked: dict[tuple[str, str], dict[str, Example]] = {}
    for example in examples:
        u = example.utterance
        emotion = task_of(run.tasks, "emotion", u)
        if not isinstance(emotion, AttributeTask) or u.category or "emotion" not in u.labels or not u.text:
            continue
        if run.tasks[example.task].generated:
            replies = {name: _in_emotion(example, name) for name in emotion.choices}
            if all(_tokens(run, reply, teacher=True) is not None for reply in replies.values()):
                asked[example.task, u.id] = replies
    run.targets.make(run.module.llm, [e for each in asked.values() for e in each.values()], progress)
    return {
        name: {emotion: run.targets.complete(example).target or "" for emotion, example in each.items()}
        for name, each in asked.items()
    }


def _in_emotion(example: Example, emotion: str) -> Example:
    labels = {**example.utterance.labels, "emotion": emotion}
    utterance = replace(example.utterance, labels=labels, caption=None, response=None)
    utterance = replace(utterance, caption=style_caption(utterance))
    return replace(example, utterance=utterance, target=None)
