"""An LLM behind any server that speaks OpenAI's chat completions: vLLM, llama.cpp, SGLang, a provider."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from sottovoce.errors import ConfigError
from sottovoce.llms import ENGINES
from sottovoce.llms.engines import Chat, Cut, Engine, Failure, answered, check_limits
from sottovoce.openai_client import CircuitBreaker, OpenAIClient

_REMEDIES = {
    "max_tokens": "set max_tokens_key=max_completion_tokens",
    "max_completion_tokens": "set max_tokens_key=max_tokens",
    "temperature": "set omit=[temperature]",
    "seed": "set omit=[seed]",
}


@ENGINES.register("openai")
class OpenAIEngine(Engine):
    """A server with OpenAI's chat completions (POST {base_url}/chat/completions), queried by several threads.

    Args:
        base_url: of the API, such as http://localhost:8000/v1.
        model: as the server calls it.
        api_key_env: see `OpenAIClient`, as `timeout` and `retries`.
        known_as: what caches call this engine; model and `base_url` where absent. With it a cache outlives a change
            of host or port.
        concurrency: chats that are sent at the same time.
        max_tokens_key: what the server calls the limit of an answer; OpenAI's newer models know the second name alone.
        omit: what is not sent, since the model does not know it, or no other value than its own.
        extra_body: more keys of a request, such as {chat_template_kwargs: {enable_thinking: false}} for vLLM.
    """

    def __init__(
        self, *, base_url: str, model: str, api_key_env: str | None = None, known_as: str | None = None,
        concurrency: int = 16, timeout: float = 120.0, retries: int = 4,
        max_tokens_key: Literal["max_tokens", "max_completion_tokens"] = "max_tokens",
        omit: list[Literal["temperature", "seed"]] | None = None, extra_body: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        if concurrency < 1:
            message = f"engine openai: concurrency must be at least 1, got {concurrency}"
            raise ConfigError(message, code="bad-value", where="concurrency")
        self.client = OpenAIClient(
            "engine openai", base_url=base_url, model=model, api_key_env=api_key_env, timeout=timeout, retries=retries,
            remedies=_REMEDIES,
        )  # fmt: skip
        self.limit, self.omit, self.extra_body = max_tokens_key, frozenset(omit or ()), extra_body or {}
        asked = json.dumps(self.extra_body, sort_keys=True) if self.extra_body else ""
        self.concurrency, self.name = concurrency, (known_as or f"{model}@{self.client.base_url}") + asked

    def answer(
        self, chats: Sequence[Chat], *, max_new_tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> list[str | Failure]:
        """See `Engine`; the rest fail without being sent once the `CircuitBreaker` is open."""
        check_limits(max_new_tokens, temperature)
        limits = {self.limit: max_new_tokens, "temperature": temperature, "seed": seed}
        body: dict[str, Any] = {name: value for name, value in limits.items() if name not in self.omit}
        body |= {"extra_body": self.extra_body} if self.extra_body else {}
        breaker = CircuitBreaker()

        def one(chat: Chat) -> str | Failure:
            return self.client.request("chat/completions", {**body, "messages": chat}, _text, breaker)

        with ThreadPoolExecutor(self.concurrency) as pool:
            return list(pool.map(one, chats))  # where one raises, what has not begun is dropped


def _text(body: bytes) -> str | Failure:
    try:
        choice = json.loads(body)["choices"][0]
        text, cut = (choice["message"]["content"] or "").strip(), choice.get("finish_reason") == "length"
        text.encode()  # half of a surrogate pair is JSON, and no text
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise ValueError("what came back is no chat completion") from None
    return answered(Cut(text) if cut else str(text))
