"""Load of `sottovoce serve`: many clients at once from this process, and what they get for it.

    python benchmarks/serve_load.py BUNDLE [--clients 64] [--seconds 60] [--audio FILE ...] [--serve "--batch-size 16"]

Starts the server in a process of its own, asks about each clip alone, and then lets all clients ask one question after
another. Every other request is a stream. Without --audio, clips are tones in noise of 0.5 to 4 s. A table on standard
output: requests a second, latency, errors, answers that differ from those of single requests, the server's memory.
Exits with 1 for an error or growth above --growth; for another answer, too, unless --unequal allows that share.
"""

import argparse
import asyncio
import base64
import io
import json
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import soundfile

Outcome = tuple[float, str, str | None]  # seconds, status or kind of error, answer


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--audio", nargs="*", type=Path, default=[], help="wav, mp3 or flac")
    parser.add_argument("--max-tokens", type=int, default=50)
    parser.add_argument("--serve", default="", help="more options of the server")
    parser.add_argument("--growth", type=float, default=5.0, help="percent of memory between the middle and the end; 5")
    parser.add_argument("--unequal", type=float, default=0.0, help="share of answers that may differ; 0")
    arguments = parser.parse_args()
    parts = [_part(file.read_bytes(), file.suffix[1:]) for file in arguments.audio] or _tones()
    command = [sys.executable, "-m", "sottovoce", "serve", arguments.bundle, "--port", "0"]
    command += shlex.split(arguments.serve)
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout
    try:
        found = re.search(r"(.*) answers at (http://\S+)/v1", server.stdout.readline())
        if not found:
            return 1
        bodies = [_body(found[1], part, arguments.max_tokens) for part in parts]
        told, wrong = asyncio.run(_measure(found[2], bodies, arguments))
    finally:
        server.terminate()
        code = server.wait()
    print(told + f"| exit code after SIGTERM | {code} |")
    return int(wrong or code != 0)


async def _measure(url: str, bodies: list[dict[str, Any]], arguments: argparse.Namespace) -> tuple[str, bool]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits, trust_env=False) as client:
        single = [await _ask(client, body, number % 2 == 1) for number, body in enumerate(bodies)]
        expected = [answer for _, _, answer in single]
        outcomes: list[Outcome] = []
        differ = 0
        start = time.monotonic()
        memory = [await _memory(client)]

        async def ask_on(number: int) -> None:
            nonlocal differ
            at = number
            while time.monotonic() < start + arguments.seconds:
                at += 7  # a client asks about other clips than its neighbours
                outcome = await _ask(client, bodies[at % len(bodies)], (at // 7 + number) % 2 == 1)
                outcomes.append(outcome)
                differ += outcome[1] == "200" and outcome[2] != expected[at % len(bodies)]

        async def watch() -> None:
            while time.monotonic() < start + arguments.seconds:
                await asyncio.sleep(min(2.0, arguments.seconds / 10))
                memory.append(await _memory(client))

        await asyncio.gather(watch(), *(ask_on(number) for number in range(arguments.clients)))
        taken = time.monotonic() - start
        memory.append(await _memory(client))
        page = (await client.get("/metrics")).text
    kinds = Counter(kind for _, kind, _ in outcomes)
    good = sorted(seconds for seconds, kind, _ in outcomes if kind == "200")
    errors = len(outcomes) - len(good)
    middle = memory[len(memory) // 2]
    growth = 100 * (memory[-1] - middle) / middle
    batches = {key: float(n) for key, n in re.findall(r"(?m)^sottovoce_batch_size_(sum|count) (\S+)", page)}
    rows = {
        "clients": arguments.clients, "seconds": f"{taken:.1f}", "answers": len(good),
        "answers a second": f"{len(good) / taken:.2f}",
        "seconds, alone, median": f"{statistics.median(seconds for seconds, _, _ in single):.3f}",
        **{f"seconds, {share} %": f"{_quantile(good, share):.2f}" for share in (50, 90, 99)},
        "requests together, mean": f"{batches['sum'] / batches['count']:.1f}",
        "errors": f"{errors} {dict(kinds - Counter({'200': len(good)})) or ''}".strip(),
        "answers unlike single ones": differ,
        "different answers, and clips": f"{len(set(expected))}, {len(bodies)}",
        "memory, MiB: start, middle, end": _mib(memory[0], middle, memory[-1]),
        "growth from the middle on": f"{growth:.1f} %",
    }  # fmt: skip
    table = f"| `serve` {arguments.serve} | |\n|---|--:|\n" + "".join(f"| {k} | {v} |\n" for k, v in rows.items())
    wrong = errors > 0 or not good or growth > arguments.growth or differ > arguments.unequal * len(good)
    return table, wrong or any(answer is None for answer in expected)


async def _ask(client: httpx.AsyncClient, body: dict[str, Any], streams: bool) -> Outcome:
    start, answer = time.monotonic(), None
    try:
        if streams:
            response = await client.post("/v1/chat/completions", json={**body, "stream": True})
            lines = [line[6:] for line in response.text.split("\n\n") if line]
            kind = str(response.status_code) if lines and lines[-1] == "[DONE]" else "broken off"
            chunks = [json.loads(line) for line in lines[:-1]] if kind == "200" else []
            answer = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
        else:
            response = await client.post("/v1/chat/completions", json=body)
            kind = str(response.status_code)
            answer = response.json()["choices"][0]["message"]["content"] if kind == "200" else None
    except httpx.HTTPError as error:
        kind = type(error).__name__
    return time.monotonic() - start, kind, answer


async def _memory(client: httpx.AsyncClient) -> float:
    """Resident bytes of the server."""
    page = (await client.get("/metrics")).text
    found = re.search(r"(?m)^process_resident_memory_bytes (\S+)", page)
    assert found
    return float(found[1])


def _mib(*sizes: float) -> str:
    return ", ".join(f"{size / (1 << 20):.0f}" for size in sizes)


def _quantile(ordered: list[float], percent: int) -> float:
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] if ordered else float("nan")


def _body(model: str, part: dict[str, Any], most: int) -> dict[str, Any]:
    return {"model": model, "max_tokens": most, "messages": [{"role": "user", "content": [part]}]}


def _part(data: bytes, form: str) -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": form}}


def _tones() -> list[dict[str, Any]]:
    rng, parts = np.random.default_rng(0), []
    for seconds in rng.uniform(0.5, 4, 24):
        at = np.arange(int(seconds * 16_000)) / 16_000
        sound = 0.3 * np.sin(2 * np.pi * rng.uniform(90, 400) * at) + 0.02 * rng.standard_normal(len(at))
        file = io.BytesIO()
        soundfile.write(file, sound, 16_000, format="WAV", subtype="PCM_16")
        parts.append(_part(file.getvalue(), "wav"))
    return parts


if __name__ == "__main__":
    sys.exit(main())
