"""A server that speaks vLLM's protocol of prompt embeddings, with a small LLM behind it."""

import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from sottovoce.llms.causal_lm import CausalLLM
from sottovoce.llms.row_generation import generate_rows


class Served:
    """What a test may look at and change."""

    def __init__(self, llm: CausalLLM) -> None:
        self.llm, self.lock = llm, threading.Lock()
        self.bodies: list[dict[str, Any]] = []
        self.models = ["frozen"]
        self.tells_ids, self.broken = True, False
        self.url = ""

    def app(self) -> FastAPI:
        app = FastAPI()
        app.get("/v1/models")(self._models)
        app.add_api_route("/tokenize", self._tokenize, methods=["POST"])
        app.add_api_route("/v1/completions", self._complete, methods=["POST"], response_model=None)
        return app

    def _models(self) -> dict[str, Any]:
        cards = [
            {"id": name, "object": "model", "created": 0, "owned_by": "vllm", "max_model_len": 400}
            for name in self.models
        ]
        return {"object": "list", "data": cards}

    async def _tokenize(self, request: Request) -> dict[str, Any]:
        body = await request.json()
        assert body["add_special_tokens"] is False
        ids = self.llm.chat.token_ids(body["prompt"])
        return {"tokens": ids, "count": len(ids), "max_model_len": 400}

    async def _complete(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        if self.broken:
            return _error(500, "broken")
        if "prompt" in body or body["model"] not in self.models or not body["stream"]:
            return _error(400, "one prompt, please")
        embeddings = torch.load(io.BytesIO(base64.b64decode(body["prompt_embeds"])), weights_only=True)
        if embeddings.ndim != 2 or embeddings.shape[1] != self.llm.dim:
            return _error(400, f"prompt_embeds: the hidden size is {self.llm.dim}")
        if len(embeddings) + body["max_tokens"] > 400:
            return _error(400, "max_tokens is too large")
        ids: list[int] = []

        def take(_: int, token: int) -> bool:
            ids.append(token)
            return token not in body["stop_token_ids"]

        with self.lock:
            generate_rows(self.llm, [embeddings], [body["max_tokens"]], take)
        return StreamingResponse(self._chunks(body, ids), media_type="text/event-stream")

    def _chunks(self, body: dict[str, Any], ids: list[int]) -> Iterator[str]:
        head = {"id": "1", "object": "text_completion", "created": 0, "model": body["model"]}
        for start in range(0, len(ids), 2):  # a server may tell several tokens in a chunk
            some = ids[start : start + 2]
            reason = None if start + 2 < len(ids) else "stop" if ids[-1] in body["stop_token_ids"] else "length"
            choice = {"index": 0, "text": self.llm.tokenizer.decode(some), "logprobs": None, "finish_reason": reason}
            choice |= {"token_ids": some} if self.tells_ids and body["return_token_ids"] else {}
            yield f"data: {json.dumps({**head, 'choices': [choice]})}\n\n"
        yield "data: [DONE]\n\n"


def _error(status: int, told: str) -> JSONResponse:
    return JSONResponse({"error": {"message": told, "type": "BadRequestError", "code": status}}, status)


@contextmanager
def vllm(llm: CausalLLM) -> Iterator[Served]:
    """The server on localhost, in a thread of its own."""
    served = Served(llm)
    server = uvicorn.Server(uvicorn.Config(served.app(), port=0, log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + 30
    while not server.started and time.monotonic() < end:
        time.sleep(0.01)
    served.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    try:
        yield served
    finally:
        server.should_exit = True
        thread.join()
