"""Client of a server with an OpenAI-compatible API, by the `openai` SDK: chat completions and speech."""

import math
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar
from urllib.parse import urlsplit

from sottovoce.errors import ConfigError, MissingError

T = TypeVar("T")
Endpoint: TypeAlias = Literal["chat/completions", "audio/speech"]

_UNKNOWN = re.compile(r"support|unknown|unrecogni[sz]ed|cannot find|not (?:permitted|allowed)|only the default", re.I)
_MAX_BYTES = 1 << 24  # of an answer
_MAX_LOST = 8  # requests in a row that ran out of attempts


@dataclass(frozen=True)
class Failure:
    """There is no answer to one request; `reason` says why, without secrets. The others have theirs."""

    reason: str


class CircuitBreaker:
    """Opens after 8 requests in a row that ran out of attempts: the server is gone, and no thread need wait for it.

    It also opens where the first 8 are refused in the same words: it is not these requests that are at fault.
    """

    def __init__(self) -> None:
        self._lock, self._lost, self._equal = threading.Lock(), 0, 0
        self._refusal: str | None = ""  # what the server has said to every request so far; None: not the same

    @property
    def open(self) -> str | None:
        """Why nothing more need be sent; None while it is not known that it is in vain."""
        if self._equal >= _MAX_LOST:
            return f"the server refuses whatever is asked: {self._refusal}"
        return "the server does not answer" if self._lost >= _MAX_LOST else None

    def record(self, lost: bool, refusal: str | None = None) -> None:
        """Whether a request ran out of attempts, and what the server refused it with."""
        with self._lock:
            self._lost = self._lost + 1 if lost else 0
            if not lost:
                self._refusal = refusal if self._refusal in ("", refusal) else None
                self._equal = 0 if self._refusal is None else self._equal + 1


class OpenAIClient:
    """Sends requests to one server, from any number of threads.

    The SDK retries what may pass, pausing ever longer or as `Retry-After` says, and takes proxies from the environment.
    A knob that makes no sense is a ConfigError, an environment variable that is not set a MissingError.

    Args:
        component: that sends, for errors: "engine openai".
        base_url: of the API, such as http://localhost:8000/v1.
        model: as the server calls it.
        api_key_env: the environment variable of the key, which is never kept in a file, written or shown; None: no key.
        timeout: seconds until an answer begins, for each attempt, and again until it has ended.
        retries: attempts after the first.
        remedies: parameter of a request -> what to set where a server does not know it.
    """

    def __init__(
        self, component: str, *, base_url: str, model: str, api_key_env: str | None, timeout: float, retries: int,
        remedies: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        import openai  # takes 0.6 s, which nobody who asks no server need wait for

        if retries < 0 or not 0 < timeout < math.inf:
            message = f"{component}: retries must be at least 0, and timeout above 0; got {retries} and {timeout}"
            raise ConfigError(message, code="bad-value", where="retries" if retries < 0 else "timeout")
        self.component, self.model, self.timeout, self.retries = component, model, timeout, retries
        self.base_url = checked_url(component, base_url)
        self.remedies = remedies or {}
        self.api_key_env, self._key = api_key_env, read_key(component, api_key_env)
        sdk = openai.OpenAI(
            api_key=self._key or "none",  # absent, the SDK would send OPENAI_API_KEY to whatever server this is
            base_url=self.base_url,
            timeout=timeout,
            max_retries=retries,
            http_client=openai.DefaultHttpxClient(follow_redirects=False),  # a redirected POST becomes a GET
        )
        self._headers = {} if self._key else {"Authorization": openai.Omit()}
        self._create: dict[Endpoint, Callable[..., Any]] = {
            "chat/completions": sdk.chat.completions.with_streaming_response.create,
            "audio/speech": sdk.audio.speech.with_streaming_response.create,
        }

    def request(
        self, endpoint: Endpoint, body: dict[str, Any], parse: Callable[[bytes], T | Failure], breaker: CircuitBreaker
    ) -> T | Failure:
        """What `parse` makes of the answer to `body`; a `Failure` where there is none, which costs this request alone.

        `parse` raises ValueError for another answer than wanted. Nothing is sent once the job's `breaker` is open.

        Raises:
            MissingError: the server refuses the key.
            ConfigError: the server does not know the model, or is not at `base_url`.
        """
        import openai

        if why := breaker.open:
            return Failure(f"given up: {why}")
        outcome: T | Failure
        refusal: str | None = None
        lost, tried = True, f"(retries: {self.retries})"
        try:
            with self._create[endpoint](model=self.model, extra_headers=self._headers, **body) as response:
                outcome = parse(self._read(response))
                lost = False
        except openai.APIStatusError as error:
            lost = error.status_code in (408, 409, 429) or error.status_code >= 500  # what the SDK retries
            outcome = Failure(f"HTTP {error.status_code} {tried}")
            if not lost:
                outcome = self._refused(endpoint, error.response, body)
                refusal = outcome.reason
        except openai.APITimeoutError:
            outcome = Failure(f"no answer within {self.timeout:g} s {tried}")
        except openai.APIConnectionError as error:  # messages of libraries may quote headers
            outcome = Failure(f"connection failed: {type(error.__cause__).__name__} {tried}")
        except ValueError as error:
            outcome = Failure(str(error))
        breaker.record(lost, refusal)
        return outcome

    def _read(self, response: Any) -> bytes:
        """The body. The SDK's timeout is for each packet, and a server may send for ever."""
        end, body = time.monotonic() + self.timeout, bytearray()
        blocks = response.iter_bytes()
        while time.monotonic() < end and len(body) <= _MAX_BYTES:
            try:
                body += next(blocks)
            except StopIteration:
                return bytes(body)
            except Exception as error:  # of httpx or its successor, whichever the SDK has
                raise ValueError(f"the answer broke off ({type(error).__name__})") from None
        raise ValueError(f"the answer is longer than {self.timeout:g} s or {_MAX_BYTES >> 20} MiB")

    def _refused(self, endpoint: str, response: Any, body: Mapping[str, Any]) -> Failure:
        status, said = response.status_code, " ".join(response.text.split())
        if self._key:
            said = said.replace(self._key, "***")  # some servers quote it
        if status in (401, 403):
            key = f"the key in {self.api_key_env}" if self._key else "a request without a key; set api_key_env"
            message = f"{self.component}: {self.base_url} refuses {key} (HTTP {status})"
            raise MissingError(message, code="unavailable", where="api_key_env") from None
        if status in (404, 405) or 300 <= status < 400:
            message = (
                f"{self.component}: HTTP {status} from {self.base_url}/{endpoint} for the model {self.model!r}: "
                f"{(said or response.headers.get('Location', ''))[:200]}. The server must know the model; base_url "
                "mostly ends in /v1"
            )
            raise ConfigError(message, code="not-found", where="model") from None
        known = self.remedies.items() if _UNKNOWN.search(said) else ()
        told = [remedy for name, remedy in known if name in body and re.search(rf"\b{name}\b", said)]
        return Failure("; ".join([f"HTTP {status}: {said[:200]}", *told]))


def checked_url(component: str, base_url: str) -> str:
    """A server's address without a slash at its end; a ConfigError where it is none, or holds a key."""
    try:
        parts = urlsplit(base_url)
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        whole = False
    if not whole or parts.username is not None or parts.query or parts.fragment:
        told = "a key belongs into an environment variable, named by api_key_env"
        message = f"{component}: base_url must be http(s)://host[:port]/path and nothing more; {told}"
        raise ConfigError(message, code="bad-value", where="base_url")
    return base_url.rstrip("/")


def read_key(component: str, variable: str | None) -> str | None:
    """The key in an environment variable, or the errors that `OpenAIClient` tells of."""
    key = os.environ.get(variable, "").strip() if variable else None
    if key == "":
        message = f"{component}: the environment variable {variable} is not set; put the key there"
        raise MissingError(message, code="unavailable", where="api_key_env")
    if key and not (key.isascii() and key.isprintable()):
        message = f"{component}: the key in {variable} holds characters that no HTTP header can"
        raise ConfigError(message, code="bad-value", where="api_key_env")
    return key
