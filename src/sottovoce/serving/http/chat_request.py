"""The body of a chat request: what it may say, and what is refused by name rather than ignored."""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sottovoce.errors import brief
from sottovoce.serving.http.errors import Refusal

FORMATS = ("wav", "mp3", "flac")
IGNORED = (  # they change nothing where answers are greedy, or are for the client's own books
    "metadata", "parallel_tool_calls", "prompt_cache_key", "safety_identifier", "seed", "service_tier", "store",
    "top_k", "top_p", "user",
)  # fmt: skip
REMEDIES = {
    "temperature": "answers are greedy: leave it out, or 0",
    "presence_penalty": "answers are greedy: leave it out, or 0",
    "frequency_penalty": "answers are greedy: leave it out, or 0",
    "n": "answers are greedy: there is one",
    "tools": "this model calls none",
    "tool_choice": "this model calls no tools",
    "response_format": "answers are plain text",
    "modalities": "answers are text",
    "audio": "answers are text",
    "logprobs": "they are not told",
    "top_logprobs": "they are not told",
    "logit_bias": "answers are greedy",
    "stop": "an answer ends where the model ends it, or after max_tokens",
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class AudioData(_Strict):
    """A clip as base64."""

    data: str
    format: Literal["wav", "mp3", "flac"]


class TextPart(_Strict):
    """Words of a turn."""

    type: Literal["text"]
    text: str


class AudioPart(_Strict):
    """Speech of a turn."""

    type: Literal["input_audio"]
    input_audio: AudioData


Part = Annotated[TextPart | AudioPart, Field(discriminator="type")]


class Message(_Strict):
    """A turn; `developer` is what newer clients call `system`."""

    role: Literal["system", "developer", "user", "assistant"]
    content: list[Part] = Field(min_length=1)
    name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, given: Any) -> Any:
        """Words alone as one part; the empty keys of an answer that a client sends back are dropped."""
        if not isinstance(given, dict):
            return given
        given = {
            key: value for key, value in given.items() if value is not None and (key, value) != ("annotations", [])
        }
        if isinstance(given.get("content"), str):
            given["content"] = [{"type": "text", "text": given["content"]}]
        return given

    def words(self) -> str:
        """Its text parts, a line each."""
        return "\n".join(part.text for part in self.content if isinstance(part, TextPart))

    def speaks(self) -> bool:
        return any(isinstance(part, AudioPart) for part in self.content)


class StreamOptions(_Strict):
    """`include_usage`: a last chunk with the tokens that were counted."""

    include_usage: bool = False
    include_obfuscation: bool = False


class TextFormat(_Strict):
    """The only format of answers."""

    type: Literal["text"]


class ChatRequest(_Strict):
    """A request, with defaults; `task` is an extension: whose wording the model is given as its instruction."""

    model: str
    messages: list[Message] = Field(min_length=1, max_length=1000)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    task: str | None = None
    n: Literal[1] = 1
    temperature: float = Field(0, ge=0, le=0)
    presence_penalty: float = Field(0, ge=0, le=0)
    frequency_penalty: float = Field(0, ge=0, le=0)
    tools: list[Any] = Field([], max_length=0)
    tool_choice: Literal["none", "auto"] = "none"
    response_format: TextFormat = TextFormat(type="text")
    modalities: list[Literal["text"]] = ["text"]
    logprobs: Literal[False] = False
    logit_bias: dict[str, Any] = Field({}, max_length=0)
    stop: list[Any] = Field([], max_length=0)

    @model_validator(mode="before")
    @classmethod
    def _known(cls, given: Any) -> Any:
        """Without keys that say nothing, and those that are ignored."""
        if not isinstance(given, dict):
            return given
        return {key: value for key, value in given.items() if value is not None and key not in IGNORED}

    @property
    def limit(self) -> int | None:
        """Of the answer, in tokens."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens


def read_request(body: bytes) -> ChatRequest:
    """A checked request; a `Refusal` that names the place of the first fault."""
    try:
        tree = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"the body is not JSON: {brief(error, 200)}", code="invalid_json") from None
    try:
        request = ChatRequest.model_validate(tree)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        place = _place(fault["loc"])
        remedy = REMEDIES.get(str(fault["loc"][0]) if fault["loc"] else "")
        why = "it is not supported" if fault["type"] == "extra_forbidden" else fault["msg"]
        told = f"{place or 'the body'}: {why}" + (f" ({remedy})" if remedy else "")
        code = "unsupported_parameter" if remedy or fault["type"] == "extra_forbidden" else "invalid_value"
        raise Refusal(400, told, code=code, param=place) from None
    for at, message in enumerate(request.messages):
        if message.role != "user" and message.speaks():
            told = f"messages[{at}]: a turn of the {message.role} is text; users speak"
            raise Refusal(400, told, code="invalid_value", param=f"messages[{at}].content")
    return request


def _place(path: Sequence[str | int]) -> str | None:
    """`messages[0].content[1].input_audio.format`; without the tags that pydantic puts behind a part's number."""
    place, tagged = "", False
    for key in path:
        if tagged and key in ("text", "input_audio"):
            tagged = False
            continue
        tagged = isinstance(key, int) and place.endswith(".content")
        place += f"[{key}]" if isinstance(key, int) else f".{key}" if place else key
    return place or None
