"""Streaming: an LLM's answer in pieces, as its tokens come."""

import re
from collections.abc import Iterator
from queue import SimpleQueue
from threading import Event, Thread

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from sottovoce.errors import SottovoceError
from sottovoce.llms.causal_lm import CausalLLM

_UNSURE = re.compile(r"(?:[<\[◁][^>\]▷]{0,30}|\ufffd+)$")  # may become a mark of thoughts; half a character


def stream(llm: CausalLLM, prompt: Tensor, max_new_tokens: int) -> Iterator[str]:
    """Pieces of the answer to a prompt (tokens, dim), which joined are that of `CausalLLM.generate`.

    The LLM works in a thread of its own, which ends with the iteration, also when that is left early.

    Raises:
        SottovoceError: as in `CausalLLM.generate`, when the first piece is asked for.
    """
    if max_new_tokens < 1:
        raise SottovoceError(f"max_new_tokens must be at least 1, got {max_new_tokens}", code="bad-value")
    llm.check_lengths([prompt], [max_new_tokens])
    worker = _Generation(llm, prompt, max_new_tokens)
    worker.start()
    ids: list[int] = []
    told = ""
    try:
        while (token := worker.tokens.get()) is not None:
            ids.append(token)
            text = _UNSURE.sub("", str(llm.text_of(ids))).rstrip()
            if text.startswith(told) and len(text) > len(told):
                yield text[len(told) :]
                told = text
    finally:
        worker.left.set()
        worker.join()
    if worker.error is not None:
        raise worker.error
    whole = str(llm.text_of(ids))
    if len(whole) > len(told) and whole.startswith(told):
        yield whole[len(told) :]


class _Generation(Thread):
    """Generates into a queue of token ids, which ends with None."""

    def __init__(self, llm: CausalLLM, prompt: Tensor, max_new_tokens: int) -> None:
        super().__init__(daemon=True)
        self.llm, self.prompt, self.max_new_tokens = llm, prompt, max_new_tokens
        self.tokens: SimpleQueue[int | None] = SimpleQueue()
        self.left = Event()
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.llm.generated_ids(
                [self.prompt], self.max_new_tokens, streamer=_Queue(self.tokens),
                stopping_criteria=StoppingCriteriaList([_Left(self.left)]),
            )  # fmt: skip
        except BaseException as error:  # told where the pieces are read
            self.error = error
        finally:
            self.tokens.put(None)


class _Queue(BaseStreamer):  # type: ignore[misc, unused-ignore]
    def __init__(self, tokens: "SimpleQueue[int | None]") -> None:
        self.tokens, self.begun = tokens, False

    def put(self, value: Tensor) -> None:
        """The ids of the prompt first, which is none, then each token."""
        if self.begun:
            for token in value.flatten().tolist():
                self.tokens.put(token)
        self.begun = True

    def end(self) -> None:
        """`_Generation` says so."""


class _Left(StoppingCriteria):
    def __init__(self, left: Event) -> None:
        self.left = left

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: object) -> Tensor:  # type: ignore[override]
        return torch.full((len(input_ids),), self.left.is_set(), device=input_ids.device)
