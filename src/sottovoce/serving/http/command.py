"""`sottovoce serve`: a bundle behind an OpenAI-compatible chat endpoint."""

import getpass
import ipaddress
import os
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from sottovoce.errors import ConfigError, MissingError
from sottovoce.signals import Terminated

if TYPE_CHECKING:
    import uvicorn

    from sottovoce.serving.model import Engine

KEY = "SOTTOVOCE_API_KEY"
INSTALL = "the endpoint needs the packages of `pip install 'sottovoce[serve]'`"


def serve(
    bundle: str, host: str = "127.0.0.1", port: int = 8000, name: str | None = None, task: str | None = None,
    instruction: str | None = None, batch_size: int = 8, queue: int = 64, max_seconds: float = 120.0,
    max_request_mb: float = 25.0, max_new_tokens: int = 200, timeout: float = 120.0, api_key: bool = False,
    engine: "Engine" = "local", url: str | None = None, served_model: str | None = None, url_key_env: str | None = None,
    overrides: Sequence[str] = (),
) -> None:  # fmt: skip
    """The command: answer chat requests until SIGTERM or Ctrl-C; what is in flight then still gets its answer.

    A key is asked of clients where the environment variable SOTTOVOCE_API_KEY has one, or with `api_key`, which asks
    for it on the terminal if that is not set: on a command line everybody on the machine could read it.

    Raises:
        ConfigError: an option that cannot be, or an address that is taken.
        MissingError: the packages of the extra `serve` are not there, or no key.
    """
    limits = {"--batch-size": batch_size, "--queue": queue, "--max-seconds": max_seconds, "--timeout": timeout,
              "--max-request-mb": max_request_mb, "--max-new-tokens": max_new_tokens}  # fmt: skip
    for option, value in limits.items():
        if not (value >= 0 if option == "--queue" else value > 0):
            raise ConfigError.at(option, "bad-value", f"it must be above 0, got {value:g}")
    if not 0 <= port < 1 << 16:
        raise ConfigError.at("--port", "bad-value", f"it is 0 to 65535, got {port}")
    if task is not None and instruction is not None:
        raise ConfigError.at("--instruction", "conflict", "a task has its own wording: give --task, or --instruction")
    key = _key(api_key)
    try:
        import uvicorn

        from sottovoce.serving.http import app, dialogue, jobs, metrics
    except ImportError as error:
        raise MissingError(f"{INSTALL} ({error.name} is not there)", code="unavailable", where="serve") from None
    from sottovoce.serving.chat import wording
    from sottovoce.serving.model import load

    listening = _listen(host, port)
    with listening:
        model = load(
            bundle, overrides=overrides, engine=engine, url=url, served_model=served_model, key_env=url_key_env
        )
        measures = metrics.Metrics()
        capacity = queue + batch_size
        answerer = jobs.Answerer(
            model, measures, batch_size=batch_size, capacity=capacity, max_new_tokens=max_new_tokens
        )
        reader = dialogue.Reader(
            model, instruction if instruction is not None else wording(model.module, task), max_seconds
        )
        asked = app.Limits(int(max_request_mb * (1 << 20)), timeout, key)
        name = name or model.recipe.name
        endpoint = app.Endpoint(name, reader, answerer, measures, asked)
        if key is None and not _loopback(host):
            print(f"sottovoce: whoever reaches {host} may ask: {KEY} sets a key", file=sys.stderr)
        config = uvicorn.Config(
            endpoint.app(), log_config=None, access_log=False, server_header=False, ws="none", lifespan="on",
            timeout_graceful_shutdown=int(timeout) + 5,
            timeout_keep_alive=75,  # longer than clients keep an idle connection, or both close and use it at once
        )  # fmt: skip
        place = f"[{host}]" if ":" in host else host
        url = f"http://{place}:{listening.getsockname()[1]}/v1"
        with suppress(Terminated, KeyboardInterrupt):  # uvicorn raises the signal again when all is answered
            _server(config, f"{name} answers at {url}").run(sockets=[listening])
    print("sottovoce: all is answered; stopped", file=sys.stderr)


def _server(config: "uvicorn.Config", ready: str) -> "uvicorn.Server":
    """A server that says when it answers."""
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            print(ready, flush=True)

    return Server(config)


def _listen(host: str, port: int) -> socket.socket:
    """A bound socket, before the model is loaded: an address that is taken is told at once."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.socket(found[0], found[1])
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(found[4])
    except (OSError, OverflowError) as error:
        why = f"{host}:{port} cannot be listened on: {getattr(error, 'strerror', None) or error}"
        raise ConfigError.at("--port", "unavailable", why) from None
    return listening


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _key(wanted: bool) -> str | None:
    """The key of clients; None where nobody asks for one."""
    key = os.environ.get(KEY, "").strip()
    if not key and wanted:
        if not sys.stdin.isatty():
            raise MissingError(f"--api-key: {KEY} is not set; put the key there", code="unavailable", where="--api-key")
        key = getpass.getpass("key: ").strip()
    if wanted and not key:
        raise MissingError("--api-key: the key is empty", code="unavailable", where="--api-key")
    if key and not (key.isascii() and key.isprintable()):
        raise ConfigError.at("--api-key", "bad-value", "the key holds characters that no HTTP header can")
    return key or None
