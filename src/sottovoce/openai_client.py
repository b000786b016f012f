"""A server with an OpenAI-compatible API: what asking it takes, whatever is asked: a chat's answer, or speech."""

import math
import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests
from urllib3.exceptions import HTTPError
from urllib3.exceptions import TimeoutError as PacketTimeout

from sottovoce.errors import ConfigError, MissingError

T = TypeVar("T")

_LONGEST_WAIT = 60.0  # seconds between two attempts, whatever a server asks for
_LONGEST_BODY = 1 << 24  # bytes; no answer is as long
_LOST = 8  # requests in a row that ran out of attempts: the server is gone, and the rest need not wait for it
_MAY_PASS = (408, 409, 425, 429)  # and all of 5xx: the same request may succeed later


@dataclass(frozen=True)
class Failure:
    """There is no answer to one request; `reason` says why, without secrets. The others have theirs."""

    reason: str


@dataclass(frozen=True)
class Retryable:
    """What may pass: another attempt is worth while, but not before `wait` seconds."""

    reason: str
    wait: float = 0.0


class CircuitBreaker:
    """What threads share: whether it is over, and how many requests in a row ran out of attempts."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self._lock, self._lost = threading.Lock(), 0

    def found(self) -> None:
        with self._lock:
            self._lost = 0

    def lost(self) -> None:
        with self._lock:
            self._lost += 1
            if self._lost >= _LOST:
                self.over.set()


class Server:
    """One address of a server: POST {base_url}/{path}, by as many threads as like to.

    What one request fails on costs that request alone: it becomes a `Failure` once no attempt is left. A refused key or
    an unknown model is told at once, since no attempt can help.

    Args:
        who: asks, for errors: "engine openai".
        path: below `base_url`, such as chat/completions.
        base_url: of the API, such as http://localhost:8000/v1.
        model: as the server calls it.
        api_key_env: the environment variable that holds the key; None for a server without one. The key itself is
            never kept in a file, written or shown.
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
        who: str,
        path: str,
        *,
        base_url: str,
        model: str,
        api_key_env: str | None,
        timeout: float,
        retries: int,
        backoff: float,
    ) -> None:
        if retries < 0 or not 0 < timeout < math.inf or not 0 <= backoff < math.inf:
            raise ConfigError(
                f"{who}: retries and backoff must be at least 0, and timeout above 0; "
                f"got retries {retries}, backoff {backoff}, timeout {timeout}"
            )
        self.who, self.path, self.model = who, path, model
        self.base_url = _checked_url(who, base_url)
        self.api_key_env, self._key = api_key_env, _key_of(who, api_key_env)
        self.timeout, self.retries, self.backoff = timeout, retries, backoff

    def ask(
        self, body: dict[str, Any], read: Callable[[bytes], T | Failure | Retryable], patience: CircuitBreaker
    ) -> T | Failure:
        """What `read` makes of the answer to one request.

        Args:
            body: of the request, beside the model.
            read: the body of an answer to what is wanted; `Retryable` for one that another attempt may mend.
            patience: shared by requests that have a fate in common: after 8 in a row that ran out of attempts, the
                rest fail without being sent.

        Raises:
            MissingError: the server refuses the key.
            ConfigError: the server does not know the model, or is not at `base_url`.
        """
        reason = ""
        for attempt in range(1 + self.retries):
            if patience.over.is_set():
                return Failure("given up: the server does not answer")
            outcome = self._attempt({"model": self.model, **body}, read)
            if not isinstance(outcome, Retryable):
                patience.found()
                return outcome
            reason = outcome.reason
            if attempt < self.retries:
                patience.over.wait(self._pause(attempt, outcome))
        patience.lost()
        return Failure(f"{reason}, {1 + self.retries} times")

    def _pause(self, attempt: int, trouble: Retryable) -> float:
        own = self.backoff * 2.0**attempt * random.uniform(0.5, 1)
        return min(max(own, trouble.wait), _LONGEST_WAIT)

    def _attempt(
        self, body: dict[str, Any], read: Callable[[bytes], T | Failure | Retryable]
    ) -> T | Failure | Retryable:
        """One request. Messages of libraries stay out of reasons: they may quote headers."""
        due = time.monotonic() + self.timeout
        try:
            with requests.post(
                f"{self.base_url}/{self.path}",
                json=body,
                auth=self._sign,  # or requests would look for a password in ~/.netrc
                timeout=self.timeout,
                allow_redirects=False,  # a redirected POST becomes a GET
                stream=True,
            ) as response:
                raw = _received(response, due)
                return read(raw) if response.status_code == 200 else self._refused(response, raw)
        except (requests.Timeout, PacketTimeout, TimeoutError):
            return Retryable(f"no answer within {self.timeout:g} s")
        except (requests.RequestException, HTTPError) as error:
            return Retryable(f"the server cannot be reached ({type(error).__name__})")

    def _sign(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request

    def _refused(self, response: requests.Response, body: bytes) -> Failure | Retryable:
        status = response.status_code
        if status in (401, 403):
            known = f"the key in {self.api_key_env}" if self._key else "a request without a key; set api_key_env"
            raise MissingError(f"{self.who}: {self.base_url} refuses {known} (HTTP {status})")
        if status in (404, 405) or 300 <= status < 400:
            leads_to = response.headers.get("Location", "")
            raise ConfigError(
                f"{self.who}: HTTP {status} from {self.base_url}/{self.path} for the model {self.model!r}: "
                f"{self._said(body or leads_to.encode())}. The server must know the model; base_url mostly ends in /v1"
            )
        if status in _MAY_PASS or status >= 500:
            return Retryable(f"HTTP {status}", retry_after(response.headers.get("Retry-After", "")))
        return Failure(f"HTTP {status}: {self._said(body)}")

    def _said(self, body: bytes) -> str:
        """The start of what a server says, without the key, which some quote."""
        text = " ".join(body.decode("utf-8", "replace").split())
        return (text.replace(self._key, "***") if self._key else text)[:200]


def _received(response: requests.Response, due: float) -> bytes:
    """The body, as long as there is time: a timeout of requests is for each packet, and a server may send for ever."""
    body = b""
    while block := response.raw.read1(1 << 16, decode_content=True):
        body += block
        if time.monotonic() > due:
            raise TimeoutError
        if len(body) > _LONGEST_BODY:
            raise HTTPError("longer than any answer")
    return body


def retry_after(value: str) -> float:
    """Seconds from now; the header holds seconds or a date (RFC 9110, section 10.2.3), or nothing of use (0)."""
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError, OSError):  # no date, or one that no clock of this machine shows
            return 0.0
    return max(0.0, seconds)  # 0 for nan, too


def _checked_url(who: str, base_url: str) -> str:
    try:
        parts = urlsplit(base_url)
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        raise ConfigError(f"{who}: base_url is not an address; write http://host:port/v1") from None
    if not whole or parts.username is not None or parts.query or parts.fragment:
        raise ConfigError(
            f"{who}: base_url must be http(s)://host[:port]/path and nothing more; a key belongs into an "
            "environment variable, named by api_key_env"
        )
    return base_url.rstrip("/")


def _key_of(who: str, variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise MissingError(f"{who}: the environment variable {variable} is not set; put the key there")
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"{who}: the key in {variable} holds characters that no HTTP header can")
    return key
