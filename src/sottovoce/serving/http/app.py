"""The endpoint: routes, key, limits, time-outs, and answers whole or as server-sent events."""

import asyncio
import contextlib
import hmac
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from sottovoce.serving.http.chat_request import ChatRequest, read_request
from sottovoce.serving.http.dialogue import Reader
from sottovoce.serving.http.errors import Refusal, refusal_of, timed_out
from sottovoce.serving.http.jobs import Answerer, Done, Job
from sottovoce.serving.http.metrics import Metrics

T = TypeVar("T")
U = TypeVar("U")
READERS = 4  # threads that read requests; more of them would only take memory and turns from the one that answers
GONE = 499  # nobody reads the answer: the client has closed the connection
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What a request may take.

    Args:
        max_bytes: of its body.
        timeout: seconds from its arrival to the end of its answer.
        key: which it must bring, as a bearer token; None: none.
    """

    max_bytes: int = 25 << 20
    timeout: float = 120.0
    key: str | None = None


class Endpoint:
    """Answers chat requests to one model.

    Args:
        name: of the model, as clients call it.
        reader: makes prompts of requests.
        answerer: makes answers of prompts; closed by the app's shutdown.
    """

    def __init__(self, name: str, reader: Reader, answerer: Answerer, metrics: Metrics, limits: Limits) -> None:
        self.name, self.reader, self.answerer, self.metrics, self.limits = name, reader, answerer, metrics, limits
        self.created = int(time.time())
        self._workers = ThreadPoolExecutor(READERS, "reader")

    def app(self) -> FastAPI:
        """The ASGI application."""

        @contextlib.asynccontextmanager
        async def lifespan(_: FastAPI) -> AsyncIterator[None]:
            yield
            await asyncio.to_thread(self.answerer.close)
            self._workers.shutdown()

        # no pages of documentation: they load scripts from elsewhere
        app = FastAPI(title="Sottovoce", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
        app.add_exception_handler(HTTPException, self._http_error)
        app.add_api_route("/health", self.health, methods=["GET"], response_model=None)
        app.add_api_route("/metrics", self.measures, methods=["GET"], response_model=None)
        for path, call, method in (
            ("/v1/models", self.models, "GET"),
            ("/v1/models/{name:path}", self.one_model, "GET"),
            ("/v1/chat/completions", self.chat, "POST"),
        ):
            app.add_api_route(path, self._guarded(call), methods=[method], response_model=None)
        return app

    async def health(self) -> Response:
        """Whether it answers."""
        alive = self.answerer.alive
        return JSONResponse({"status": "ok" if alive else "stopped"}, 200 if alive else 503)

    async def measures(self) -> Response:
        return Response(self.metrics.page(), media_type=CONTENT_TYPE_LATEST)

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def one_model(self, request: Request) -> Response:
        self._check_model(str(request.path_params["name"]))
        return JSONResponse(self._card())

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        began, job = time.monotonic(), None
        try:
            self.answerer.admit()
        except Refusal:
            await self._read_away(request)
            self.metrics.requests.labels("429").inc()
            raise
        ended = False

        def end(status: int) -> None:
            nonlocal ended
            if not ended:
                ended = True
                taken = time.monotonic() - began
                self.metrics.requests.labels(str(status)).inc()
                self.metrics.seconds.observe(taken)
                self.answerer.leave(job, taken)

        try:
            deadline = began + self.limits.timeout
            asked = await self._asked(request, deadline)
            job = await self._job(asked, deadline)
            self.answerer.submit(job)
            head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": self.name}
            if asked.stream:
                first = await self._until(job.events.get(), deadline, request)
                if isinstance(first, Refusal):
                    raise first
                self.metrics.first.observe(time.monotonic() - began)
                events = self._events(job, first, head, asked.stream_options.include_usage, deadline)
                return _Events(events, end)
            found = await self._until(job.events.get(), deadline, request)
            if isinstance(found, Refusal):
                raise found
            assert isinstance(found, Done)  # pieces are told to streams alone
            end(200)
            return JSONResponse(_whole(head, found))
        except ClientDisconnect:
            end(GONE)
            return Response(status_code=GONE)
        except BaseException as error:
            end(refusal_of(error).status)
            raise

    async def _asked(self, request: Request, deadline: float) -> ChatRequest:
        body = await self._in_time(self._body(request), deadline)
        asked: ChatRequest = await self._in_time(self._worked(read_request, body), deadline)
        self._check_model(asked.model)
        return asked

    async def _job(self, asked: ChatRequest, deadline: float) -> Job:
        made = await self._in_time(self._worked(self.reader.prepare, asked), deadline)
        self.metrics.heard.inc(made.seconds)
        return Job(made.prompt, made.clips, asked.limit, asked.stream)

    def _worked(self, call: Callable[[T], U], given: T) -> "asyncio.Future[U]":
        return asyncio.get_running_loop().run_in_executor(self._workers, call, given)

    async def _body(self, request: Request) -> bytes:
        """The body; a `Refusal` (413) as soon as it is too long."""
        most, body = self.limits.max_bytes, bytearray()
        announced = request.headers.get("content-length", "")
        too_long = announced.isdecimal() and int(announced) > most
        async for block in request.stream():
            if not too_long:
                body += block
            if too_long := too_long or len(body) > most:
                break
        if too_long:
            told = f"the body has more than {most / (1 << 20):g} MiB, the server's limit"
            raise Refusal(413, told, code="request_too_large")
        return bytes(body)

    async def _read_away(self, request: Request) -> None:
        """Read and forget a small body, or a client that still writes never sees the refusal."""
        with contextlib.suppress(Refusal, ClientDisconnect):
            await self._in_time(_drain(request), time.monotonic() + 5)

    async def _in_time(self, work: Any, deadline: float) -> Any:
        try:
            return await asyncio.wait_for(work, max(0.0, deadline - time.monotonic()))
        except asyncio.TimeoutError:
            raise timed_out(self.limits.timeout) from None

    async def _until(self, work: Any, deadline: float, request: Request) -> Any:
        """What comes of `work`, unless its client goes away before that, or its time is over."""
        tasks = [asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))]
        try:
            await asyncio.wait(
                tasks, timeout=max(0.0, deadline - time.monotonic()), return_when=asyncio.FIRST_COMPLETED
            )
            if tasks[0].done():
                return tasks[0].result()
            if tasks[1].done():
                raise ClientDisconnect
            raise timed_out(self.limits.timeout)
        finally:
            for task in tasks:
                task.cancel()

    async def _events(
        self, job: Job, event: str | Done, head: dict[str, Any], usage: bool, deadline: float
    ) -> AsyncIterator[bytes]:
        """Server-sent events: chunks of the answer, its end, and `[DONE]`; an error in place of what is missing."""
        head = {**head, "object": "chat.completion.chunk"} | ({"usage": None} if usage else {})
        yield _event(head, {"role": "assistant", "content": ""}, None)
        while not isinstance(event, Done):
            yield _event(head, {"content": event}, None)
            try:
                following = await self._in_time(job.events.get(), deadline)
            except Refusal as refusal:
                following = refusal
            if isinstance(following, Refusal):
                yield _line(following.body())
                return
            event = following
        yield _event(head, {}, event.reason)
        if usage:
            yield _line({**head, "choices": [], "usage": _usage(event)})
        yield b"data: [DONE]\n\n"

    def _guarded(self, call: Callable[[Request], Any]) -> Callable[[Request], Any]:
        """A route that asks for the key, and whose errors are OpenAI's."""

        async def route(request: Request) -> Response:
            try:
                self._check_key(request)
                response: Response = await call(request)
            except Exception as error:
                refusal = refusal_of(error)
                if refusal.status >= 500 and not isinstance(error, Refusal):
                    log.error("a request failed: %s: %s", type(error).__name__, error)
                    log.debug("where it failed", exc_info=error)
                return _refused(refusal)
            return response

        return route

    async def _http_error(self, request: Request, error: Exception) -> Response:
        """A path or method that is not there."""
        status = error.status_code if isinstance(error, HTTPException) else 500
        told = f"{request.method} {request.url.path}: there is no such endpoint"
        return _refused(Refusal(status, told, code="unknown_endpoint"))

    def _check_key(self, request: Request) -> None:
        if self.limits.key is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        right = hmac.compare_digest(given.strip().encode(), self.limits.key.encode())
        if scheme.lower() != "bearer" or not right:
            told = "this server wants its key: `Authorization: Bearer KEY`"
            raise Refusal(401, told, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    def _check_model(self, name: str) -> None:
        if name != self.name:
            told = f"there is no model {name!r} here; it is called {self.name!r}"
            raise Refusal(404, told, code="model_not_found", param="model")

    def _card(self) -> dict[str, Any]:
        model = self.reader.model
        tasks = {"tasks": list(model.tasks), "slots": list(model.slots)}  # beside what OpenAI tells
        return {"id": self.name, "object": "model", "created": self.created, "owned_by": "sottovoce", **tasks}


class _Events(StreamingResponse):
    """A stream that tells when it has ended, also where nobody read it to its end."""

    def __init__(self, events: AsyncIterator[bytes], end: Callable[[int], None]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self.end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.end(200)


async def _drain(request: Request, most: int = 1 << 22) -> None:
    read = 0
    async for block in request.stream():
        read += len(block)
        if read > most:
            return


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _refused(refusal: Refusal) -> Response:
    return JSONResponse(refusal.body(), refusal.status, refusal.headers)


def _usage(done: Done) -> dict[str, int]:
    both = done.prompt_tokens + done.tokens
    return {"prompt_tokens": done.prompt_tokens, "completion_tokens": done.tokens, "total_tokens": both}


def _whole(head: dict[str, Any], done: Done) -> dict[str, Any]:
    message = {"role": "assistant", "content": done.text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": done.reason}
    return {**head, "object": "chat.completion", "choices": [choice], "usage": _usage(done)}


def _event(head: dict[str, Any], delta: dict[str, str], reason: str | None) -> bytes:
    return _line({**head, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]})


def _line(tree: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(tree, ensure_ascii=False).encode() + b"\n\n"
