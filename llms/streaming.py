"""Streaming: an LLM's answer in pieces, as its tokens come."""

import re
from collections.abc import Iterator
from queue import SimpleQueue
from threading import Event, Thread

from torch import Tensor

from sottovoce.errors import SottovoceError
from sottovoce.llms.causal_lm import CausalLLM
from sottovoce.llms.row_generation import generate_rows

_UNSURE = re.compile(r"(?:[<\[◁][^>\]▷]{0,30}|\ufffd+)$")  # may become a mark of thoughts; half a character


class TextPieces:
    """Text of an answer, piece by piece as its token ids come; joined they are `CausalLLM.text_of` of all ids."""

    def __init__(self, llm: CausalLLM) -> None:
        self.llm, self.told = llm, ""
        self.ids: list[int] = []

    def add(self, token: int) -> str:
        """What is certain after one more token, and was not told before; mostly a word."""
        self.ids.append(token)
        return self._more(_UNSURE.sub("", str(self.llm.text_of(self.ids))).rstrip())

    def rest(self) -> str:
        """What is left when the answer has ended."""
        return self._more(str(self.llm.text_of(self.ids)))

    def _more(self, text: str) -> str:
        if not text.startswith(self.told):
            return ""
        piece, self.told = text[len(self.told) :], text
        return piece


def stream(llm: CausalLLM, prompt: Tensor, max_new_tokens: int) -> Iterator[str]:
    """Pieces of the answer to a prompt (tokens, dim), which joined are that of `CausalLLM.generate`.

    The LLM works in a thread of its own, which ends with the iteration, also when that is left early.

    Raises:
        SottovoceError: as in `CausalLLM.generate`, when the first piece is asked for.
    """
    if max_new_tokens < 1:
        raise SottovoceError(f"max_new_tokens must be at least 1, got {max_new_tokens}", code="bad-value")
    llm.check_lengths([prompt], [max_new_tokens])
    worker, pieces = _Generation(llm, prompt, max_new_tokens), TextPieces(llm)
    worker.start()
    try:
        while (token := worker.tokens.get()) is not None:
            if piece := pieces.add(token):
                yield piece
    finally:
        worker.left.set()
        worker.join()
    if worker.error is not None:
        raise worker.error
    if piece := pieces.rest():
        yield piece


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
            generate_rows(self.llm, [self.prompt], [self.max_new_tokens], self._take)
        except BaseException as error:  # told where the pieces are read
            self.error = error
        finally:
            self.tokens.put(None)

    def _take(self, _: int, token: int) -> bool:
        self.tokens.put(token)
        return not self.left.is_set()
