"""Chat requests as clients write them, and an endpoint in this process that answers them."""

import asyncio
import base64
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

import sottovoce as sv
from sottovoce.serving.http.app import Endpoint, Limits
from sottovoce.serving.http.dialogue import Reader
from sottovoce.serving.http.jobs import Answerer, Job
from sottovoce.serving.http.metrics import Metrics

PATH = "/v1/chat/completions"


def clip(file: Path, form: str | None = None) -> dict[str, Any]:
    """A part of a turn."""
    data = base64.b64encode(file.read_bytes()).decode()
    return {"type": "input_audio", "input_audio": {"data": data, "format": form or file.suffix[1:]}}


def user(*parts: str | dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}


def system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


def body(*messages: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": list(messages), "max_tokens": 4, **more}


class App:
    """An endpoint without a network."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint, self.answerer = endpoint, endpoint.answerer
        self.app = endpoint.app()

    def run(self, work: Callable[[httpx.AsyncClient], Awaitable[Any]]) -> Any:
        """What comes of a coroutine that is given a client."""

        async def inside() -> Any:
            transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=True)
            async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as client:
                return await work(client)

        return asyncio.run(inside())

    def post(self, tree: Any, **headers: str) -> httpx.Response:
        """The response to one chat request."""
        content = tree if isinstance(tree, bytes) else None
        given = {"content": content} if content is not None else {"json": tree}
        response: httpx.Response = self.run(lambda client: client.post(PATH, **given, headers=headers))
        return response

    def get(self, path: str, **headers: str) -> httpx.Response:
        response: httpx.Response = self.run(lambda client: client.get(path, headers=headers))
        return response

    def post_all(self, trees: list[Any]) -> list[httpx.Response]:
        """The responses to several at once."""

        async def work(client: httpx.AsyncClient) -> list[httpx.Response]:
            return list(await asyncio.gather(*(client.post(PATH, json=tree) for tree in trees)))

        found: list[httpx.Response] = self.run(work)
        return found


@contextmanager
def endpoint(
    model: sv.Model, *, batch_size: int = 8, capacity: int = 64, max_seconds: float = 60.0, instruction: str = "Reply.",
    **limits: Any,
) -> Iterator[App]:  # fmt: skip
    """An endpoint of a model, closed behind the block."""
    metrics = Metrics()
    answerer = Answerer(model, metrics, batch_size=batch_size, capacity=capacity)
    try:
        yield App(Endpoint("tiny", Reader(model, instruction, max_seconds), answerer, metrics, Limits(**limits)))
    finally:
        answerer.close()


class Gate:
    """Holds an answerer back until it is opened, so that requests wait."""

    def __init__(self, answerer: Answerer) -> None:
        self.opened, self.answerer, self.batches = threading.Event(), answerer, list[int]()
        self._answer = answerer._answer
        answerer._answer = self._held  # type: ignore[method-assign]

    def _held(self, jobs: Sequence[Job]) -> None:
        self.batches.append(len(jobs))
        self.opened.wait(30)
        self._answer(jobs)

    async def open_at(self, requests: int) -> None:
        """When so many wait, or are held."""
        end = time.monotonic() + 30
        while sum(self.batches[:1]) + len(self.answerer._waiting) < requests and time.monotonic() < end:
            await asyncio.sleep(0.01)
        self.opened.set()
