"""A judge without an LLM: it holds a reply against exemplars, replies that are known to fit an emotion."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any

from sottovoce.config_tree import read_yaml
from sottovoce.errors import ConfigError, nearest
from sottovoce.evaluation import JUDGES
from sottovoce.evaluation.judges.llm import HIGHEST, LOWEST, Answerer, Aspect, Judge, Reply, Verdict
from sottovoce.evaluation.metrics import rouge_l_of_each
from sottovoce.paths import resolve

_FUNCTION_WORDS = Path(__file__).parents[1] / "rubrics" / "function_words.txt"
_WORD = re.compile(r"[a-z0-9]+")  # as ROUGE reads texts


@dataclass(frozen=True)
class _Exemplar:
    """`text` is without its {thing}; `room` is how much nearer it is to itself than to any of another emotion."""

    emotion: str
    text: str
    names_thing: bool
    room: float = 1.0


@JUDGES.register("rule")
class RuleJudge(Judge):
    """Scores a reply by its likeness (ROUGE-L; Lin, 2004) to exemplars of every emotion.

    Emotion: 1 where the reply is no nearer to an exemplar of the speaker's emotion than to one of another, 10 where it
    is an exemplar of that emotion, and in proportion in between. Quality: 1, and 9 times the likeness to the nearest
    exemplar of any emotion; half of that is lost if this exemplar takes up a word of the transcript ({thing}) and the
    reply takes up none.

    It can tell whether a reply of a small, known world is one of those that are due there, to which emotion, and
    whether it is about what was said. It cannot tell a good reply in other words from a bad one, nor see a feeling
    that is put otherwise, nor whether a word of the transcript is taken up sensibly. Where replies are
    free, ask an LLM.

    Args:
        engine: not used; judges are built alike.
        exemplars: emotion -> replies that fit it. In a reply {thing} stands for what the transcript is about.
        file: YAML or JSON with the exemplars, in place of them.
        things: words that {thing} may stand for; any content word of the (English) transcript if there are none.

    Raises:
        ConfigError: not one of `exemplars` and `file` is given, fewer than two emotions have exemplars, or one is no
            text or has another field than {thing}.
    """

    def __init__(
        self,
        engine: Answerer | None = None,
        *,
        exemplars: dict[str, list[str]] | None = None,
        file: str | None = None,
        things: list[str] | None = None,
    ) -> None:
        if (exemplars is None) == (file is None):
            raise ConfigError("judge rule: give either exemplars (emotion -> replies) or a file of them")
        self.name = "rule"
        self.exemplars = _with_room(_checked(_read(resolve(file)) if file else exemplars, f"judge rule: {file or ''}"))
        self.emotions = sorted({exemplar.emotion for exemplar in self.exemplars})
        self._things = {word for thing in things or () for word in _words(thing)}
        self._function_words = _function_words()

    def judge(self, replies: Sequence[Reply]) -> dict[Aspect, Verdict]:
        """See `Judge`. A reply to an emotion without exemplars fails for `emotion` alone."""
        things = [self._things_of(reply.transcript) for reply in replies]
        spoken = [" ".join(w for w in _words(r.response) if w not in t) for r, t in zip(replies, things, strict=True)]
        pairs = [(text, exemplar.text) for text in spoken for exemplar in self.exemplars]
        likeness = rouge_l_of_each([text for text, _ in pairs], [text for _, text in pairs])
        size = len(self.exemplars)
        near = [likeness[start : start + size] for start in range(0, len(likeness), size)]  # (replies, exemplars)
        unknown = Counter(_unknown(r.emotion, self.emotions) for r in replies if r.emotion not in self.emotions)
        return {
            "quality": Verdict([self._quality(*row) for row in zip(replies, things, near, strict=True)]),
            "emotion": Verdict([self._emotion(*row) for row in zip(replies, near, strict=True)], unknown),
        }

    def _quality(self, reply: Reply, things: set[str], near: list[float]) -> float:
        likeness, exemplar = max(zip(near, self.exemplars, strict=True), key=lambda found: found[0])
        off_subject = exemplar.names_thing and bool(things) and things.isdisjoint(_words(reply.response))
        return _on_scale(likeness / 2 if off_subject else likeness)

    def _emotion(self, reply: Reply, near: list[float]) -> float | None:
        if reply.emotion not in self.emotions:
            return None
        found = list(zip(near, self.exemplars, strict=True))
        rival = max(likeness for likeness, exemplar in found if exemplar.emotion != reply.emotion)
        fits = ((likeness - rival) / max(e.room, 1e-6) for likeness, e in found if e.emotion == reply.emotion)
        return _on_scale(min(1.0, max(0.0, *fits)))

    def _things_of(self, transcript: str) -> set[str]:
        words = set(_words(transcript))
        return words & self._things if self._things else words - self._function_words


def _on_scale(share: float) -> float:
    return LOWEST + (HIGHEST - LOWEST) * share


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _unknown(emotion: str, known: Iterable[str]) -> str:
    return f"there is no exemplar for {emotion!r}.{nearest(emotion, known)}"


def _function_words() -> set[str]:
    lines = _FUNCTION_WORDS.read_text("utf-8").splitlines()
    return {word for line in lines if not line.startswith("#") for word in line.split()}


def _read(file: Path) -> Any:
    try:
        return read_yaml(file)
    except ConfigError as error:
        raise ConfigError(f"judge rule: {error}") from None


def _checked(given: Any, where: str) -> list[_Exemplar]:
    if not isinstance(given, dict) or not all(isinstance(texts, list) and texts for texts in given.values()):
        raise ConfigError(f"{where}: exemplars must be a mapping of emotions to lists of replies")
    if len(given) < 2:
        raise ConfigError(f"{where}: exemplars of at least two emotions are needed, or there is nothing to compare")
    return [_exemplar(str(emotion), text, where) for emotion, texts in given.items() for text in texts]


def _exemplar(emotion: str, text: Any, where: str) -> _Exemplar:
    try:
        parts = list(Formatter().parse(text))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {emotion}: {text!r} is no reply: {error}") from None
    fields = {name for _, name, _, _ in parts if name is not None}
    if fields - {"thing"}:
        raise ConfigError(f"{where}: {emotion}: {text!r} has a field other than {{thing}}")
    literal = " ".join(_words(" ".join(words for words, *_ in parts)))
    if not literal:
        raise ConfigError(f"{where}: {emotion}: {text!r} has no word in a-z or 0-9 to be compared")
    return _Exemplar(emotion, literal, bool(fields))


def _with_room(exemplars: list[_Exemplar]) -> list[_Exemplar]:
    return [
        _Exemplar(one.emotion, one.text, one.names_thing, 1 - max(rouge_l_of_each([one.text] * len(rivals), rivals)))
        for one in exemplars
        for rivals in [[other.text for other in exemplars if other.emotion != one.emotion]]
    ]
