"""`sottovoce demo`: a bundle on a page in the browser, served on this machine."""

import errno
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from typing import Any

from sottovoce.errors import ConfigError, MissingError, first_line
from sottovoce.serving.model import load
from sottovoce.signals import Terminated
from sottovoce.webpage.examples import examples_beside, named_examples
from sottovoce.webpage.listener import Listener

PORTS = range(1, 65_536)


def demo(
    bundle: str, against: str | None = None, example: Sequence[str] = (), host: str = "127.0.0.1",
    port: int | None = None, browser: bool = True, overrides: Sequence[str] = (),
) -> None:  # fmt: skip
    """The command: serve the page until it is interrupted. `overrides` hold for both bundles.

    Clips that are recorded or uploaded are deleted when it ends.

    Raises:
        MissingError: Gradio or matplotlib is not installed, or a clip of `example` is not there.
        ConfigError: the address cannot be had.
        BundleError: as in `load`.
    """
    if port is not None and port not in PORTS:
        raise ConfigError.at("--port", "bad-value", f"{port} is none; they are 1 to 65535")
    examples = named_examples(example) or examples_beside(Path(bundle))
    with _clips_of_the_page():
        page = _page_module()
        first = Listener(load(bundle, overrides=overrides))
        second = Listener(load(against, overrides=overrides)) if against else None
        if second and second.name == first.name:  # of one recipe, or of its seeds: told apart by their folders
            first.name, second.name = bundle, str(against)
        blocks = page.build(first, examples, second)
        with served(blocks, host, port, browser, **page.looks()) as address:
            print(f"page     {address}   (Ctrl+C ends it)", flush=True)
            try:
                Event().wait()
            except (KeyboardInterrupt, Terminated):
                print("sottovoce: the page is closed", file=sys.stderr)


@contextmanager
def served(blocks: Any, host: str, port: int | None, browser: bool = False, **looks: Any) -> Iterator[str]:
    """Within the block the page is at the address that is given: a URL.

    Raises:
        ConfigError: the address cannot be had.
    """
    _check_address(host, port)
    os.environ["no_proxy"] = ",".join(filter(None, [os.environ.get("no_proxy"), "127.0.0.1", "localhost"]))
    try:
        blocks.launch(server_name=host, server_port=port, inbrowser=browser, prevent_thread_lock=True, **looks)
    except (OSError, ValueError) as error:  # no port is free, or a proxy stands before this machine itself
        blocks.close(verbose=False)
        raise ConfigError.at("--port", "unavailable", first_line(error)) from None
    try:
        yield blocks.local_url
    finally:
        blocks.close(verbose=False)


def _check_address(host: str, port: int | None) -> None:
    """ConfigError for an address that cannot be had, on which Gradio's server would wait, and end in a thread."""
    try:
        address = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ConfigError.at("--host", "unavailable", f"{host}: {error.strerror or error}") from None
    with socket.socket(address[0], socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server itself
        try:
            probe.bind(address[4])
        except OSError as error:
            where = "--port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "--host"
            raise ConfigError.at(where, "unavailable", f"{host}:{port or ''} {error.strerror}") from None


@contextmanager
def _clips_of_the_page() -> Iterator[None]:
    """A folder of its own for what Gradio is given, which goes when the page does."""
    with TemporaryDirectory(prefix="sottovoce-page-", ignore_cleanup_errors=True) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            yield
        finally:
            del os.environ["GRADIO_TEMP_DIR"]


def _page_module() -> Any:
    """The module `page`; it needs packages that not everybody has."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio  # noqa: F401
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name not in ("gradio", "matplotlib"):
            raise
        why = f"it needs {error.name}: pip install 'sottovoce[page]'"
        raise MissingError.at("demo", "unavailable", why) from None
    from sottovoce.webpage import page

    return page
