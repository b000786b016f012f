"""Engines: LLMs that answer written chats, to make targets or to judge, on this machine or on a server."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from sottovoce.device import best_device
from sottovoce.errors import ConfigError, SottovoceError
from sottovoce.llms import ENGINES
from sottovoce.llms.answer_text import Cut as Cut
from sottovoce.llms.answer_text import without_thoughts
from sottovoce.llms.causal_lm import CausalLLM
from sottovoce.llms.chat_template import ChatTurn, Segment
from sottovoce.llms.hf_model import Dtype
from sottovoce.llms.row_batches import known_prefixes
from sottovoce.openai_client import Failure as Failure

Chat = list[dict[str, str]]  # messages with `role` and `content`, as OpenAI and Hugging Face write them


class Engine(ABC):
    """An LLM that answers written chats.

    A subclass takes its knobs as keyword-only parameters. `name` tells apart what would answer differently: it goes
    into the keys of caches.
    """

    name: str

    @abstractmethod
    def answer(
        self, chats: Sequence[Chat], *, max_new_tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> list[str | Failure]:
        """One answer for each chat, in their order; an answer never depends on what else is asked.

        Args:
            chats: each ends with a user's turn.
            max_new_tokens: of an answer; one that was cut there is a `Cut`.
            temperature: 0 takes the likeliest token again and again.
            seed: of the draws, where the temperature is above 0.

        Returns:
            Texts that are not empty, without thoughts and white space around them; a `Failure` for each chat without
            one.

        Raises:
            SottovoceError: nothing can be answered, whatever is asked, such as where a server refuses the key.
        """


@ENGINES.register("local")
class LocalEngine(Engine):
    """Any Hugging Face causal LM with a chat template, on one device of this machine.

    A model that one device cannot hold is better served (`openai`, for example by vLLM). Errors as in `LoadedLLM`.

    Args:
        checkpoint: a local folder, `sottovoce:` and a folder of the package, or a hub id.
        dtype: of the weights.
        trust_remote_code: run Python code that comes with the checkpoint.
        batch_size: chats that are answered together.
        device: of PyTorch; where absent that of --device, else the first GPU, if there is one.
        chat_template_kwargs: see `ChatFormat`.
    """

    def __init__(
        self, *, checkpoint: str, dtype: Dtype = "bfloat16", trust_remote_code: bool = False, batch_size: int = 48,
        device: str | None = None, chat_template_kwargs: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        if batch_size < 1:
            message = f"engine local: batch_size must be at least 1, got {batch_size}"
            raise ConfigError(message, code="bad-value", where="batch_size")
        try:
            torch.device(device or "cpu")
        except RuntimeError:
            message = f"engine local: device: there is no {device!r}; take cpu, cuda or cuda:0"
            raise ConfigError(message, code="bad-value", where="device") from None
        llm = CausalLLM(checkpoint, dtype, trust_remote_code, chat_template_kwargs=chat_template_kwargs)
        llm.load()
        self.llm = llm.to(device or best_device())
        self.batch_size, self.name = batch_size, f"local:{llm.fingerprint()[:16]}"

    def answer(
        self, chats: Sequence[Chat], *, max_new_tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> list[str | Failure]:
        """See `Engine`; chats of like length are answered together."""
        check_limits(max_new_tokens, temperature)
        prompts = [self._prompt(chat, max_new_tokens) for chat in chats]
        answers: list[str | Failure] = [p if isinstance(p, Failure) else Failure("not answered") for p in prompts]
        usable = {at: prompt for at, prompt in enumerate(prompts) if not isinstance(prompt, Failure)}
        order = sorted(usable, key=lambda at: len(usable[at]))
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            noise = [Sampling(temperature, [_seed(seed, chats[at]) for at in rows])] if temperature else []
            together: list[list[Segment]] = [[usable[at]] for at in rows]
            embedded, known = self.llm.embed_all(together, {}), known_prefixes(together)
            texts = self.llm.generate(embedded, max_new_tokens, known, LogitsProcessorList(noise))
            for at, text in zip(rows, texts, strict=True):
                answers[at] = answered(text)
        return answers

    def _prompt(self, chat: Chat, max_new_tokens: int) -> list[int] | Failure:
        try:
            turns = [ChatTurn(turn["role"], (turn["content"],)) for turn in chat]  # type: ignore[arg-type]
            ids = [token for part in self.llm.chat.prompt(turns) if isinstance(part, list) for token in part]
        except SottovoceError as error:
            return Failure(str(error))
        most: int | None = getattr(self.llm.config.get_text_config(), "max_position_embeddings", None)
        if most is not None and len(ids) + max_new_tokens > most:
            return Failure(f"{len(ids)} tokens, and {max_new_tokens} may follow: the LLM reads {most}")
        return ids


def answered(text: str) -> str | Failure:
    """What an engine answers, without thoughts; a `Failure` where there is nothing else."""
    kept = without_thoughts(text)
    if kept:
        return kept
    if isinstance(text, Cut):
        return Failure("no words but thoughts within max_new_tokens: raise that, or switch thinking off")
    return Failure("the answer is empty")


class Sampling(LogitsProcessor):
    """Turns greedy search into sampling: the largest of logits / temperature + Gumbel noise is an exact draw.

    Maddison et al. (2014), section 2. Each row has noise of its own, from one of `seeds`, so that an answer does not
    depend on its batch. The temperature is above 0.
    """

    def __init__(self, temperature: float, seeds: Sequence[int]) -> None:
        self.temperature = temperature
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        """Logits (rows, vocabulary) to noisy ones; a token that was ruled out (-inf) stays so."""
        waits = [torch.empty(scores.shape[1]).exponential_(generator=generator) for generator in self.generators]
        return scores / self.temperature - torch.stack(waits).log().to(scores.device)


def check_limits(max_new_tokens: int, temperature: float) -> None:
    """Raises SottovoceError where no answer could come of them."""
    if max_new_tokens < 1:
        message = f"max_new_tokens must be at least 1, got {max_new_tokens}"
        raise SottovoceError(message, code="bad-value", where="max_new_tokens")
    if not 0 <= temperature < float("inf"):
        message = f"temperature must be 0 or above, got {temperature}"
        raise SottovoceError(message, code="bad-value", where="temperature")


def _seed(seed: int, chat: Chat) -> int:
    digest = hashlib.sha256(json.dumps([seed, chat]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1  # PyTorch takes 63 bits and a sign
