"""Refusals of the endpoint, in the shape of OpenAI's errors."""

from collections.abc import Mapping
from typing import Any

from sottovoce.errors import SottovoceError, brief

KINDS = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error", 502: "server_error",
         503: "server_error", 504: "server_error"}  # fmt: skip


class Refusal(Exception):
    """A request that gets no answer.

    Args:
        status: of HTTP.
        message: what the user reads, in one line.
        code: the kind of fault, for programs.
        param: the place in the request, such as `messages[0].content[1].input_audio`.
        headers: of the response.
    """

    def __init__(
        self, status: int, message: str, *, code: str, param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, brief(message), code, param
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON that OpenAI's clients read."""
        kind = KINDS.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def refusal_of(error: BaseException) -> Refusal:
    """What a client is told of an error: little, since messages name our files."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, SottovoceError) and error.code in ("unavailable", "not-found", "died"):
        return Refusal(502, "the LLM cannot be reached; the server's log says why", code="engine_unavailable")
    return Refusal(500, "the server failed at this request; its log says why", code="internal_error")


def too_long(prompt: int, answer: int, context: int) -> Refusal:
    """Of a dialogue that, with its answer, is more than the LLM reads; all in tokens."""
    told = f"the messages take {prompt} tokens and the answer may take {answer}: the model reads {context} in all"
    return Refusal(400, told, code="context_length_exceeded", param="messages")


def timed_out(seconds: float) -> Refusal:
    """Of a request that took longer than the server allows."""
    return Refusal(504, f"no answer within {seconds:g} s, the server's --timeout", code="timeout")
