"""Targets that the LLM makes itself: its response to the text equivalent of speech, made once and kept.

Style-aware behaviour alignment (Wang et al., ICME 2025, section III-B): the adapters learn to make the LLM answer
speech as it answers the equivalent text, so its habits stay its own.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Mapping
from copy import copy
from dataclasses import replace
from pathlib import Path

from rich.progress import Progress

from sottovoce.data.examples import Example
from sottovoce.device import on_device
from sottovoce.errors import SottovoceError
from sottovoce.io import file_lock, storage_errors
from sottovoce.llms.causal_lm import CausalLLM
from sottovoce.llms.chat_template import ChatTurn
from sottovoce.training.spoken_prompt import dialogue_of

BATCH = 64  # prompts that are answered together


class Targets:
    """Responses by model and prompt, in a JSONL file that only grows; a killed run goes on where it was.

    Args:
        folder: of the cache.
        fingerprint: of the LLM; another LLM has another file.
        slots: slot -> the text equivalent to its speech.
        max_new_tokens: of a response; part of what tells responses apart.
    """

    def __init__(self, folder: Path, fingerprint: str, slots: Mapping[str, str], max_new_tokens: int) -> None:
        self.file = folder / "targets" / f"{fingerprint[:16]}.jsonl"
        self.slots, self.max_new_tokens = slots, max_new_tokens
        self.known: dict[str, str] = {}
        with file_lock(self.file.parent):
            self._read()

    def with_slots(self, slots: Mapping[str, str]) -> "Targets":
        """The same responses, for other texts in the slots."""
        other = copy(self)
        other.slots = slots
        return other

    def _read(self) -> None:
        if not self.file.is_file():
            return
        text = self.file.read_text("utf-8")
        if not text.endswith("\n"):  # a run was killed while it wrote its last line, which is asked for again
            text = text[: text.rfind("\n") + 1]
            self.file.write_text(text, "utf-8")
        for number, line in enumerate(text.splitlines(), 1):
            try:
                entry = json.loads(line)
                if entry.get("sum", _sum(entry)) != _sum(entry):  # lines of older versions have none
                    raise ValueError("changed since it was written")
                self.known[entry["key"]] = entry["response"]
            except (ValueError, KeyError, TypeError, AttributeError):
                raise SottovoceError(f"{self.file}:{number}: damaged line; deleting the file is safe") from None

    def complete(self, example: Example) -> Example:
        """The example with its target; one that has a target stays as it is."""
        if example.target is not None:
            return example
        target = self.known.get(self._key(example))
        if target is None:
            raise SottovoceError(
                f"{example.utterance.id}: the task {example.task!r} needs an answer of the LLM, which is made before "
                "training; where data.checks is `during`, the manifest must have it (`sottovoce targets` writes it)"
            )
        return replace(example, target=target)

    def make(self, llm: CausalLLM, examples: Iterable[Example], progress: Progress) -> int:
        """Answer every prompt that has not been answered yet; returns how many there were.

        Of processes that ask for the same, the first makes them and the others find them in the file.
        """
        missing = {self._key(e): e for e in examples if e.target is None and self._key(e) not in self.known}
        if not missing:
            return 0
        with file_lock(self.file.parent):
            self._read()
            missing = {key: example for key, example in missing.items() if key not in self.known}
            if missing:
                with llm.untuned(), on_device(llm):
                    self._make(llm, missing, progress)
        return len(missing)

    def _make(self, llm: CausalLLM, missing: Mapping[str, Example], progress: Progress) -> None:
        keys = list(missing)
        for start in progress.track(range(0, len(keys), BATCH), description="asking the LLM"):
            part = keys[start : start + BATCH]
            chats = [asked(missing[key], self.slots) for key in part]
            prompts = [llm.embed(llm.chat.prompt(chat), {}) for chat in chats]
            self._keep(part, llm.generate(prompts, self.max_new_tokens))

    def _keep(self, keys: list[str], responses: list[str]) -> None:
        self.known |= zip(keys, responses, strict=True)
        entries = [{"key": k, "response": r} for k, r in zip(keys, responses, strict=True)]
        lines = [json.dumps({**entry, "sum": _sum(entry)}) + "\n" for entry in entries]
        with storage_errors(self.file), self.file.open("a", encoding="utf-8") as stream:
            stream.write("".join(lines))  # a line that breaks off is asked for again
            stream.flush()
            os.fsync(stream.fileno())

    def _key(self, example: Example) -> str:
        prompt = [(turn.role, turn.pieces) for turn in asked(example, self.slots)]
        return hashlib.sha256(json.dumps([self.max_new_tokens, prompt]).encode()).hexdigest()


def _sum(entry: Mapping[str, str]) -> str:
    """CRC-32 of prompt and response, so that a changed line is not learned from."""
    return f"{zlib.crc32(json.dumps([entry['key'], entry['response']]).encode()):08x}"


def asked(example: Example, slots: Mapping[str, str]) -> list[ChatTurn]:
    """The example's chat with text in every slot, under the teacher's system prompt where the task has one."""
    teacher = [ChatTurn("system", (example.teacher,))] if example.teacher else []
    return [*teacher, *dialogue_of(in_text(example), slots)]


def in_text(example: Example) -> Example:
    """The same example with the equivalent text in every slot."""
    return replace(example, sources=dict.fromkeys(example.sources, "text"))
