"""Targets that a run's own LLM makes: its response to the text equivalent of speech, made once and kept.

Style-aware behaviour alignment (Wang et al., ICME 2025, section III-B): the adapters learn to make the LLM answer
speech as it answers the equivalent text, so its habits stay its own.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from sottovoce.data.examples import Example
from sottovoce.device import on_device
from sottovoce.errors import SottovoceError
from sottovoce.io import file_lock
from sottovoce.llms.answer_cache import AnswerCache, digest_key
from sottovoce.llms.answer_text import no_target, without_thoughts
from sottovoce.llms.causal_lm import CausalLLM
from sottovoce.llms.chat_template import ChatTurn
from sottovoce.llms.row_batches import known_prefixes
from sottovoce.progress import Progress
from sottovoce.training.spoken_prompt import dialogue_of

BATCH = 64  # prompts that are answered together
_NAMED = 20  # examples without a target
Name = tuple[str, str]  # task and id of an example


class Made(NamedTuple):
    """What `Targets.make` has done."""

    new: int  # prompts that were answered now
    wanted: set[Name]  # examples whose target the LLM makes
    rejected: dict[Name, str]  # those of them whose answer is nothing to learn from, and why

    def told(self, max_new_tokens: int) -> str:
        """How many were left out and why, the first of them by name."""
        reasons: dict[str, list[str]] = {}
        for (_, name), why in sorted(self.rejected.items()):
            reasons.setdefault(why, []).append(name)
        head = f"{len(self.rejected)} of {len(self.wanted)} targets of the LLM are left out (at {max_new_tokens} tokens"
        lines = [f"{head}: data.target_max_new_tokens)"]
        for why, names in reasons.items():
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            lines.append(f"  {len(names)} {why}: {', '.join(names[:_NAMED])}{more}")
        return "\n".join(lines)


class Targets:
    """Responses of one LLM by prompt, in an `AnswerCache`; a killed run goes on where it was.

    Args:
        folder: of the cache.
        fingerprint: of the LLM; another LLM has another file.
        slots: slot -> the text equivalent to its speech.
        max_new_tokens: of a response; part of what tells responses apart.
    """

    def __init__(self, folder: Path, fingerprint: str, slots: Mapping[str, str], max_new_tokens: int) -> None:
        self.folder, self.slots, self.max_new_tokens = folder / "targets", slots, max_new_tokens
        with file_lock(self.folder):
            self.cache = AnswerCache(self.folder / f"{fingerprint[:16]}.answers")

    def complete(self, example: Example) -> Example:
        """The example with its target; one that has a target stays as it is."""
        if example.target is not None:
            return example
        target = self.cache.answers.get(self._key(example))
        if target is None:
            told = (
                f"the task {example.task!r} needs an answer of the LLM, which is made before training; where "
                "data.validate is `lazy`, the manifest must have it (`sottovoce targets` writes it)"
            )
            raise SottovoceError.at(example.utterance.id, "missing-key", told)
        return replace(example, target=without_thoughts(target))

    def make(self, llm: CausalLLM, examples: Iterable[Example], progress: Progress) -> Made:
        """Answer every prompt that has not been answered yet.

        Of processes that want the same, the first makes them and the others find them.
        """
        wanted: dict[str, Example] = {}
        names: dict[str, set[Name]] = {}  # of all examples that share a prompt
        for example in examples:
            if example.target is None:
                key = self._key(example)
                wanted[key] = example
                names.setdefault(key, set()).add((example.task, example.utterance.id))
        missing: list[str] = []
        if not wanted.keys() <= self.cache.answers.keys():
            with file_lock(self.folder):
                self.cache.read()
                missing = [key for key in wanted if key not in self.cache.answers]
                if missing:
                    with llm.untuned(), on_device(llm):
                        self._make(llm, {key: wanted[key] for key in missing}, progress)
        answers = self.cache.answers
        faults = {key: why for key in wanted if (why := no_target(without_thoughts(answers[key])))}
        rejected = {name: why for key, why in faults.items() for name in names[key]}
        return Made(len(missing), {name for each in names.values() for name in each}, rejected)

    def _make(self, llm: CausalLLM, missing: Mapping[str, Example], progress: Progress) -> None:
        """Answers of prompts of like length together, for which the LLM reads once what all of them begin with."""
        prompts = {key: llm.chat.prompt(teacher_dialogue(one, self.slots)) for key, one in missing.items()}
        keys = sorted(prompts, key=lambda key: sum(len(part) for part in prompts[key] if isinstance(part, list)))
        for start in progress.track(range(0, len(keys), BATCH), description="generating targets", unit="batch"):
            part = keys[start : start + BATCH]
            chats = [prompts[key] for key in part]
            said = llm.generate(llm.embed_all(chats, {}), self.max_new_tokens, known_prefixes(chats))
            self.cache.add(dict(zip(part, said, strict=True)))

    def _key(self, example: Example) -> str:
        prompt = [(turn.role, turn.pieces) for turn in teacher_dialogue(example, self.slots)]
        return digest_key(self.max_new_tokens, prompt)


def teacher_dialogue(example: Example, slots: Mapping[str, str]) -> list[ChatTurn]:
    """The dialogue that makes a target: text in every slot, the teacher's system prompt where the task has one."""
    teacher = [ChatTurn("system", (example.teacher,))] if example.teacher else []
    written = replace(example, sources=dict.fromkeys(example.sources, "text"))
    return [*teacher, *dialogue_of(written, slots)]
