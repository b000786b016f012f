"""An LLM behind any server that speaks OpenAI's chat completions: vLLM, llama.cpp, SGLang, a provider."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from sottovoce.errors import ConfigError
from sottovoce.llms import ENGINES
from sottovoce.llms.engines import Chat, Cut, Engine, Failure, check_limits
from sottovoce.openai_client import CircuitBreaker, OpenAIClient


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
    """

    def __init__(
        self, *, base_url: str, model: str, api_key_env: str | None = None, known_as: str | None = None,
        concurrency: int = 16, timeout: float = 120.0, retries: int = 4,
    ) -> None:  # fmt: skip
        if concurrency < 1:
            message = f"engine openai: concurrency must be at least 1, got {concurrency}"
            raise ConfigError(message, code="bad-value", where="concurrency")
        self.client = OpenAIClient(
            "engine openai", base_url=base_url, model=model, api_key_env=api_key_env, timeout=timeout, retries=retries
        )
        self.concurrency, self.name = concurrency, known_as or f"{model}@{self.client.base_url}"

    def answer(
        self, chats: Sequence[Chat], *, max_new_tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> list[str | Failure]:
        """See `Engine`; after 8 chats in a row that ran out of attempts, the rest fail without being sent."""
        check_limits(max_new_tokens, temperature)
        limits, breaker = {"max_tokens": max_new_tokens, "temperature": temperature, "seed": seed}, CircuitBreaker()

        def one(chat: Chat) -> str | Failure:
            return self.client.request("chat/completions", {**limits, "messages": chat}, _text, breaker)

        with ThreadPoolExecutor(self.concurrency) as pool:
            return list(pool.map(one, chats))  # where one raises, what has not begun is dropped


def _text(body: bytes) -> str | Failure:
    try:
        choice = json.loads(body)["choices"][0]
        text, cut = (choice["message"]["content"] or "").strip(), choice.get("finish_reason") == "length"
        text.encode()  # half of a surrogate pair is JSON, and no text
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise ValueError("what came back is no chat completion") from None
    if not text:
        return Failure("the answer is empty")
    return Cut(text) if cut else str(text)
