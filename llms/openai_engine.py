"""An LLM behind any server that speaks OpenAI's chat completions: vLLM, llama.cpp, SGLang, a provider."""

import json
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

from sottovoce.errors import ConfigError
from sottovoce.llms import ENGINES
from sottovoce.llms.engines import Chat, Cut, Engine, Failure, check_limits
from sottovoce.openai_client import CircuitBreaker, Retryable, Server


@ENGINES.register("openai")
class OpenAIEngine(Engine):
    """A server with OpenAI's chat completions (POST {base_url}/chat/completions), asked by several threads.

    What one chat fails on costs that chat alone: it becomes a `Failure` once no attempt is left. A refused key or an
    unknown model is told at once, since no attempt can help.

    Args:
        base_url: of the API, such as http://localhost:8000/v1.
        model: as the server calls it.
        api_key_env: the environment variable that holds the key; None for a server without one. The key itself is
            never kept, written or shown.
        known_as: what caches call this engine; model and `base_url` where absent. With it a cache outlives a change
            of host or port.
        concurrency: chats that are asked at the same time.
        timeout: seconds that one attempt may take, from the first byte sent to the last one received.
        retries: attempts after the first.
        backoff: seconds before the second attempt at most; doubled for each further one. A random part of up to half
            is left out, so that many clients do not come back at once. Never less than the server's `Retry-After`, and
            never more than a minute.

    Raises:
        ConfigError: a knob makes no sense.
        MissingError: the environment variable is not set.
    """

    def __init__(
        self,
        *,
        base_url: str,
        model: str,
        api_key_env: str | None = None,
        known_as: str | None = None,
        concurrency: int = 16,
        timeout: float = 120.0,
        retries: int = 4,
        backoff: float = 1.0,
    ) -> None:
        if concurrency < 1:
            raise ConfigError(f"engine openai: concurrency must be at least 1, got {concurrency}")
        self.server = Server(
            "engine openai",
            "chat/completions",
            base_url=base_url,
            model=model,
            api_key_env=api_key_env,
            timeout=timeout,
            retries=retries,
            backoff=backoff,
        )
        self.name = known_as or f"{model}@{self.server.base_url}"
        self.concurrency = concurrency

    def answer(
        self, chats: Sequence[Chat], *, max_new_tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> list[str | Failure]:
        """See `Engine`. After 8 chats in a row that ran out of attempts, the rest fail without being asked.

        Raises:
            MissingError: the server refuses the key.
            ConfigError: the server does not know the model, or is not at `base_url`.
        """
        check_limits(max_new_tokens, temperature)
        limits = {"max_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
        patience = CircuitBreaker()
        with ThreadPoolExecutor(self.concurrency) as pool:
            try:
                asked = [
                    pool.submit(self.server.ask, {**limits, "messages": chat}, _content, patience) for chat in chats
                ]
                wait(asked, return_when=FIRST_EXCEPTION)
            finally:
                patience.over.set()  # whoever still waits for a next attempt need not
            return [future.result() for future in asked]


def _content(body: bytes) -> str | Failure | Retryable:
    try:
        choice = json.loads(body)["choices"][0]
        text, cut = (choice["message"]["content"] or "").strip(), choice.get("finish_reason") == "length"
        text.encode()  # half of a surrogate pair is JSON, and no text
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return Retryable("what came back is no chat completion")
    if not text:
        return Failure("the answer is empty")
    return Cut(text) if cut else str(text)
