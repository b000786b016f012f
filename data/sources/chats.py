"""Chats about audio as ms-swift, LLaMA-Factory (ShareGPT) and OpenAI write them: `messages` and `audios`."""

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from sottovoce.data.corpora.report import Report
from sottovoce.data.sources.rows import Choice, Row
from sottovoce.data.sources.tables import MALFORMED, read_objects

_MARK = re.compile(r"<audio>(?:(.*?)</audio>)?", re.DOTALL)  # ms-swift also writes <audio>PATH</audio>
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def read_chats(source: Path, choice: Choice, report: Report) -> Iterator[Row]:
    """A row for each user turn with audio that is answered; the turns before it are its context.

    The answer is the column `response`, the text beside `<audio>` the column `instruction`. A chat without audio is a
    row of `text` and `response`.
    """
    for place, found in read_objects(source, report):
        turns = found.get("messages") or found.get("conversations")
        clips: Any = next((found[key] for key in ("audios", "audio") if found.get(key)), [])
        clips = list(clips) if isinstance(clips, list) else [clips]
        others = {k: v for k, v in found.items() if k not in ("messages", "conversations", "audios", "audio")}
        try:
            read = [_turn(turn, clips) for turn in turns] if isinstance(turns, list) else []
        except (KeyError, TypeError, AttributeError, ValueError):
            report.add(MALFORMED, f"{place}: a turn has no role and content")
            continue
        if clips:
            report.add(MALFORMED, f"{place}: more audio than <audio> in the turns")
            continue
        yield from _rows(place, read, others, report)


def _rows(place: str, turns: list[tuple[str, str, list[Any]]], others: dict[str, Any], report: Report) -> Iterator[Row]:
    system = "\n".join(text for role, text, _ in turns if role == "system")
    spoken = [turn for turn in turns if turn[0] != "system"]
    context: list[dict[str, Any]] = []
    answered = [(a, b) for a, b in pairwise(spoken) if (a[0], b[0]) == ("user", "assistant")]
    if not answered:
        report.add("no answered user turn", place)
    known: dict[str, Any] = {**others, **({"system": system} if system else {})}
    for number, ((_, said, clips), (_, answer, _)) in enumerate(answered, 1):
        where = place if len(answered) == 1 else f"{place}, turn {number}"
        own = {"id": f"{known['id']}-{number}"} if "id" in known and len(answered) > 1 else {}
        before = {"context": list(context)} if context else {}
        if len(clips) > 1:
            report.add("several clips in one turn", where)
        elif any(not turn["text"] for turn in context):
            report.add("a turn before it has audio and no text, which a context needs", where)
        elif clips and clips[0] is None:
            report.add(MALFORMED, f"{where}: more <audio> than audio")
        elif clips:
            asked = {"instruction": said} if said else {}
            yield Row(where, {**known, **own, "audio": clips[0], "response": answer, **asked, **before})
        elif len(answered) == 1:
            yield Row(where, {**known, "text": said, "response": answer})
        heard = {"audio": clips[0]} if len(clips) == 1 and isinstance(clips[0], str) else {}
        context += [{"role": "user", "text": said, **heard}, {"role": "assistant", "text": answer}]


def _turn(turn: dict[str, Any], clips: list[Any]) -> tuple[str, str, list[Any]]:
    """Role, text and audio of a turn; the chat's own list of clips gets shorter."""
    role = _ROLES[str(turn.get("role", turn.get("from"))).lower()]
    content = turn["content"] if "content" in turn else turn["value"]
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    texts, heard = [], []
    for part in content:
        if part["type"] == "text":
            for match in _MARK.finditer(part["text"]):
                heard.append(match[1] or (clips.pop(0) if clips else None))
            texts.append(_MARK.sub("", part["text"]).strip())
        elif part["type"] == "input_audio":  # OpenAI's, with the clip inside
            import base64

            inner = part["input_audio"]
            heard.append({"bytes": base64.b64decode(inner["data"]), "path": f"clip.{inner.get('format', 'wav')}"})
        else:
            given = part.get("audio") or part.get("audio_url") or (clips.pop(0) if clips else None)
            heard.append(given["url"] if isinstance(given, dict) and "url" in given else given)
    return role, "\n".join(filter(None, texts)), heard
