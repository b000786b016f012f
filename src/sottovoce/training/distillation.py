"""Distillation from the frozen LLM itself: what it expects of a response when it reads what an adapter hears.

As BLSP-KD (Wang et al., 2024) and Ultravox align speech with text: the teacher reads the text that is equivalent to
the speech in each slot, the student hears it, and both go through the same response.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from sottovoce.config.sections import DistillConfig
from sottovoce.data.examples import Example, slot_text
from sottovoce.data.utterance import Turn, Utterance
from sottovoce.llms.answer_cache import digest_key
from sottovoce.llms.causal_lm import CausalLLM
from sottovoce.llms.top_tokens import Teaching, TopTokenCache, TopTokens
from sottovoce.training.llm_targets import teacher_dialogue


class Distiller:
    """The teacher of a stage: what it says is computed once, and kept in `folder`, by its fingerprint.

    Args:
        llm: of the run; as a teacher it is what it was before LoRA.
        folder: of the run's cache.
        slots: slot -> the text equivalent to its speech.
        config: how much of the teacher's distribution is kept, and at which temperature.
    """

    def __init__(self, llm: CausalLLM, folder: Path, slots: Mapping[str, str], config: DistillConfig) -> None:
        self._llm, self._folder, self.slots, self.config = [llm], folder, slots, config  # no part of this one's owner

    @cached_property
    def cache(self) -> TopTokenCache:
        name = f"{self._llm[0].fingerprint()[:16]}-{self.config.top_k}-{self.config.temperature:g}"
        return TopTokenCache(self._folder / "teachers" / name)

    def teaching(self, examples: Sequence[Example], responses: Sequence[list[int]]) -> Teaching:
        """Of each example the tokens that the teacher expects in its response; none where it could not know enough."""
        found: list[TopTokens | None] = [None] * len(examples)
        missing: dict[str, list[int]] = {}
        for i, (example, response) in enumerate(zip(examples, responses, strict=True)):
            if not teachable(example, self.slots):
                continue
            key = self._key(example, response)
            found[i] = self.cache.get(key)
            if found[i] is None:
                missing.setdefault(key, []).append(i)
        if missing:
            first = [rows[0] for rows in missing.values()]
            made = self._read([examples[i] for i in first], [responses[i] for i in first])
            for (key, rows), tokens in zip(missing.items(), made, strict=True):
                self.cache.put(key, tokens)
                for i in rows:
                    found[i] = tokens
        return Teaching(found, self.config.temperature)

    def _read(self, examples: Sequence[Example], responses: Sequence[list[int]]) -> list[TopTokens]:
        llm = self._llm[0]
        training = llm.training
        llm.eval()
        try:
            with llm.untuned():
                prompts = [llm.embed(llm.chat.prompt(teacher_dialogue(e, self.slots)), {}) for e in examples]
                return llm.top_tokens(prompts, list(responses), self.config.top_k, self.config.temperature)
        finally:
            llm.train(training)

    def _key(self, example: Example, response: list[int]) -> str:
        return digest_key([(turn.role, turn.pieces) for turn in teacher_dialogue(example, self.slots)], response)


def teachable(example: Example, slots: Mapping[str, str]) -> bool:
    """Whether speech is heard, and the text that is equivalent to it is known in every slot of every spoken turn."""
    turns: tuple[Utterance | Turn, ...] = (example.utterance, *example.context)
    known = all(slot_text(turn, text) for turn in turns if turn.audio is not None for text in slots.values())
    return example.utterance.audio is not None and "speech" in example.sources.values() and known
