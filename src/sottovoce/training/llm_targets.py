"""Targets that a run's own LLM makes, by all its processes: responses to the text equivalent of speech, made once.

Style-aware behaviour alignment (Wang et al., ICME 2025, section III-B): the adapters learn to make the LLM answer
speech as it answers the equivalent text, so its habits stay its own.
"""

from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from sottovoce.data.examples import Example
from sottovoce.device import on_device
from sottovoce.errors import SottovoceError
from sottovoce.io import file_lock
from sottovoce.json_journal import Journal
from sottovoce.llms.answer_cache import AnswerCache, digest_key
from sottovoce.llms.answer_text import no_target, without_thoughts
from sottovoce.llms.causal_lm import CausalLLM
from sottovoce.llms.chat_template import ChatTurn, Segment
from sottovoce.llms.row_batches import known_prefixes
from sottovoce.progress import Progress
from sottovoce.shared_parts import Part, parts_to_make
from sottovoce.training.spoken_prompt import dialogue_of

BATCH = 64  # prompts that are answered together
_NAMED = 20  # examples without a target
Name = tuple[str, str]  # task and id of an example


class Made(NamedTuple):
    """What `Targets.make` has done."""

    new: int  # prompts that this process has answered now
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
        self.fingerprint = fingerprint
        self.cache = AnswerCache(self.folder / f"{fingerprint[:16]}.answers")
        self._layout = self.folder / f".{self.cache.file.stem}.parts"  # parts that are being made, a line each

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

        Processes that want the same at the same time share it, and each comes back when all is made.
        """
        wanted: dict[str, Example] = {}
        names: dict[str, set[Name]] = {}  # of all examples that share a prompt
        for example in examples:
            if example.target is None:
                key = self._key(example)
                wanted[key] = example
                names.setdefault(key, set()).add((example.task, example.utterance.id))
        new = self._make(llm, wanted, progress) if not wanted.keys() <= self.cache.answers.keys() else 0
        answers = self.cache.answers
        faults = {key: why for key in wanted if (why := no_target(without_thoughts(answers[key])))}
        rejected = {name: why for key, why in faults.items() for name in names[key]}
        return Made(new, {name for each in names.values() for name in each}, rejected)

    def _make(self, llm: CausalLLM, wanted: Mapping[str, Example], progress: Progress) -> int:
        """Answers of prompts of like length together, for which the LLM reads once what all of them begin with.

        Returns how many this process has made.
        """
        parts, cache, new = self._parts(llm, wanted), self.cache, 0
        if not parts:
            return 0
        task = progress.start("generating targets", len(parts), "batch")
        due = parts_to_make(
            self.folder, parts, lambda part: all(key in cache.answers or key not in wanted for key in part), cache.read,
            task.advance,
        )  # fmt: skip
        with llm.untuned(), on_device(llm), closing(due):
            for part in due:
                keys = [key for key in part if key in wanted]  # with those that a killed process had written down
                chats = [self._prompt(llm, wanted[key]) for key in keys]
                said = llm.generate(llm.embed_all(chats, {}), self.max_new_tokens, known_prefixes(chats))
                made = {key: text for key, text in zip(keys, said, strict=True) if key not in cache.answers}
                cache.add(made)
                new += len(made)
        task.end()
        with file_lock(self.folder):
            if {key for part in self._laid_out() for key in part} <= cache.answers.keys():
                self._layout.unlink(missing_ok=True)
        return new

    def _parts(self, llm: CausalLLM, wanted: Mapping[str, Example]) -> list[Part]:
        """Parts with all prompts that have no answer: the first process lays them out, and others find them."""
        with file_lock(self.folder):
            self.cache.read()
            missing = {key: one for key, one in wanted.items() if key not in self.cache.answers}
            parts = self._laid_out()
            rest = missing.keys() - {key for part in parts for key in part}
            prompts = {key: self._prompt(llm, one) for key, one in missing.items() if key in rest}
            keys = sorted(prompts, key=lambda key: sum(len(part) for part in prompts[key] if isinstance(part, list)))
            new = [tuple(keys[start : start + BATCH]) for start in range(0, len(keys), BATCH)]
            if new:
                Journal(self._layout).append(new)
        return [part for part in (*parts, *new) if not missing.keys().isdisjoint(part)]

    def _prompt(self, llm: CausalLLM, example: Example) -> list[Segment]:
        return llm.chat.prompt(teacher_dialogue(example, self.slots))

    def _laid_out(self) -> list[Part]:
        lines = Journal(self._layout).news()[1]
        return [tuple(map(str, line)) for line in lines if isinstance(line, list)]

    def _key(self, example: Example) -> str:
        prompt = [(turn.role, turn.pieces) for turn in teacher_dialogue(example, self.slots)]
        return digest_key(self.max_new_tokens, prompt)


def teacher_dialogue(example: Example, slots: Mapping[str, str]) -> list[ChatTurn]:
    """The dialogue that makes a target: text in every slot, the teacher's system prompt where the task has one."""
    teacher = [ChatTurn("system", (example.teacher,))] if example.teacher else []
    written = replace(example, sources=dict.fromkeys(example.sources, "text"))
    return [*teacher, *dialogue_of(written, slots)]
