"""A server of judges, writers and voices that speaks OpenAI's protocol: slow, wrong or absent when it is told to be."""

import io
import json
import re
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from zlib import crc32

import numpy as np
import soundfile

Mood = Literal["up", "troubled", "absent", "locked"]
MODELS = {  # that the recipes' servers have, by their addresses
    "http://localhost:8000/v1": [
        "Qwen/Qwen2.5-72B-Instruct", "gpt-4.1", "gpt-4o-mini", "meta-llama/Meta-Llama-3-70B-Instruct", "NAME",
    ],
    "http://localhost:8001/v1": ["meta-llama/Llama-3.1-70B-Instruct", "gpt-4o-mini-tts"],
}  # fmt: skip
VOICES = "alloy ash ballad coral echo fable nova onyx sage shimmer verse marin cedar".split()  # of gpt-4o-mini-tts
WRONG = ("slow", "500", "no JSON", "no number", "429", "right")  # first answers of a troubled server


class Service:
    """One server behind an address that stays; while it is absent nobody listens there."""

    def __init__(self, models: list[str]) -> None:
        self.models, self.mood, self.asked = models, "up", Counter[str]()
        self.lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), self)
        self.port = self._server.server_port
        self._start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def become(self, mood: Mood) -> None:
        """Be absent, or back and in this mood; `troubled` begins anew with each text."""
        if (mood == "absent") != (self.mood == "absent"):
            if mood == "absent":
                self.close()
            else:
                self._server = _Server(("127.0.0.1", self.port), self)
                self._start()
        self.mood = mood
        self.asked.clear()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _start(self) -> None:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], service: Service) -> None:
        super().__init__(address, _Handler)
        self.service = service

    def handle_error(self, *_: Any) -> None:
        """A client that went away."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        service = self.server.service
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        speech = self.path.endswith("/audio/speech")
        text = body["input"] + str(body["voice"]) if speech else body["messages"][-1]["content"]
        with service.lock:
            service.asked[text] += 1
            first = service.asked[text] == 1
        if service.mood == "locked":
            return self._send(401, {"error": {"message": "no such key"}})
        if body["model"] not in service.models:
            return self._send(404, {"error": {"message": f"the model {body['model']} does not exist"}})
        if speech and body["voice"] not in VOICES:
            return self._send(400, {"error": {"message": f"no voice {body['voice']}"}})
        wrong = WRONG[crc32(text.encode()) % len(WRONG)] if service.mood == "troubled" and first else "right"
        if wrong == "slow":
            time.sleep(0.5)
        if wrong in ("500", "429"):
            return self._send(int(wrong), {"error": {"message": "busy"}}, {"Retry-After-Ms": "5"})
        if wrong == "no JSON":
            return self._send(200, b"<html>Bad Gateway</html>")
        if speech:
            return self._send(200, _wave(text), {"Content-Type": "audio/wav"})
        said = "I would rather not say." if wrong == "no number" else answer_to(body["messages"])
        choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        self._send(200, {"id": "1", "object": "chat.completion", "model": body["model"], "choices": [choice]})

    def _send(self, status: int, said: Any, headers: dict[str, str] = {}) -> None:  # noqa: B006
        raw = said if isinstance(said, bytes) else json.dumps(said).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers, "Content-Length": str(len(raw))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: Any) -> None: ...


def answer_to(messages: list[dict[str, str]]) -> str:
    """What a model of good will answers to a rubric, a writer's prompt, or an utterance."""
    text = messages[-1]["content"]
    shape = re.search(r"\{\"[^{}]*\}\Z", text.strip().rstrip("."))
    if shape and re.search(r"\bN\b", shape[0]):  # the JSON that a rubric ends with
        values = iter((1,) if '"label"' in shape[0] else (4, 3, 2, 4))
        return re.sub(r"\bN\b", lambda _: str(next(values)), shape[0])
    if "Answer with the number alone" in text:
        return "4"
    if 'Say "Yes" or "No"' in text:
        return "Yes"
    if wanted := re.match(r"Write (\d+) different things.*topic: (.*)\.", text):
        mark = crc32(text.encode()) % 9973
        return "\n".join(f"Could you tell me about {wanted[2]}, part {mark} of {n}?" for n in range(int(wanted[1])))
    if speaker := re.match(r"The speaker's (\w+): (\w+)\.\nThe speaker says: (.*)", text):
        return f"For somebody whose {speaker[1]} is {speaker[2]}: number {crc32(speaker[3].encode()) % 997} is right."
    return "I am glad to hear that, tell me more."


def _wave(text: str) -> bytes:
    rng = np.random.default_rng(crc32(text.encode()))
    at = np.arange(int(24_000 * (0.3 + 0.01 * (len(text) % 10)))) / 24_000
    pitch = rng.uniform(120, 320)
    sound = 0.1 * sum(np.sin(2 * np.pi * pitch * k * at) / k for k in range(1, 6)) + 0.002 * rng.standard_normal(
        len(at)
    )
    file = io.BytesIO()
    soundfile.write(file, sound, 24_000, format="WAV", subtype="PCM_16")
    return file.getvalue()
