"""Rule judge: likeness of a reply to exemplars, replies that are known to fit an emotion; no LLM is asked."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from sottovoce.errors import ConfigError, nearest
from sottovoce.evaluation import JUDGES
from sottovoce.evaluation.judges.base import Answerer, Aspect, Judge, Reply, Verdict
from sottovoce.evaluation.text_similarity import likeness_of, words_of
from sottovoce.templates import Template, uncommented_lines

LOWEST, HIGHEST = 1, 10  # of both scores
_FUNCTION_WORDS = Path(__file__).parents[1] / "rubrics" / "function_words.txt"


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
    whether it is about what was said. It cannot tell a good reply in other words from a bad one, nor see a feeling put
    otherwise, nor whether a word of the transcript is taken up sensibly. Where replies are free, ask an LLM.

    Args:
        engine: not used.
        exemplars: emotion -> replies that fit it. In a reply {thing} stands for what the transcript is about.
        things: words that {thing} may stand for; any content word of the (English) transcript if there are none.

    Raises:
        ConfigError: fewer than two emotions have exemplars, or one has no word or another field than {thing}.
    """

    def __init__(
        self, engine: Answerer | None = None, *, exemplars: dict[str, list[str]], things: list[str] | None = None
    ) -> None:
        self.name = "rule"
        self.exemplars = _exemplars(exemplars)
        self.emotions = sorted({exemplar.emotion for exemplar in self.exemplars})
        self._things = {word for thing in things or () for word in words_of(thing)}
        self._function_words = {word for _, line in uncommented_lines(_FUNCTION_WORDS) for word in line.split()}

    def judge(self, replies: Sequence[Reply]) -> dict[Aspect, Verdict]:
        """See `Judge`. A reply to an emotion without exemplars fails for `emotion` alone."""
        things = [self._things_of(reply.transcript) for reply in replies]
        spoken = [" ".join(w for w in words_of(r.response) if w not in t) for r, t in zip(replies, things, strict=True)]
        texts = [exemplar.text for exemplar in self.exemplars]
        likeness = likeness_of(product(spoken, texts))
        near = [[likeness[said, text] for text in texts] for said in spoken]  # (replies, exemplars)
        unknown = Counter(
            f"there is no exemplar for {r.emotion!r}.{nearest(r.emotion, self.emotions)}"
            for r in replies
            if r.emotion not in self.emotions
        )
        return {
            "quality": Verdict([self._quality(*row) for row in zip(replies, things, near, strict=True)]),
            "emotion": Verdict([self._emotion(*row) for row in zip(replies, near, strict=True)], unknown),
        }

    def _quality(self, reply: Reply, things: set[str], near: list[float]) -> float:
        likeness, exemplar = max(zip(near, self.exemplars, strict=True), key=lambda found: found[0])
        off_subject = exemplar.names_thing and bool(things) and things.isdisjoint(words_of(reply.response))
        return _on_scale(likeness / 2 if off_subject else likeness)

    def _emotion(self, reply: Reply, near: list[float]) -> float | None:
        if reply.emotion not in self.emotions:
            return None
        found = list(zip(near, self.exemplars, strict=True))
        rival = max(likeness for likeness, exemplar in found if exemplar.emotion != reply.emotion)
        fits = ((likeness - rival) / max(e.room, 1e-6) for likeness, e in found if e.emotion == reply.emotion)
        return _on_scale(min(1.0, max(0.0, *fits)))

    def _things_of(self, transcript: str) -> set[str]:
        words = set(words_of(transcript))
        return words & self._things if self._things else words - self._function_words


def _on_scale(share: float) -> float:
    return LOWEST + (HIGHEST - LOWEST) * share


def _exemplars(given: Mapping[str, Sequence[str]]) -> list[_Exemplar]:
    if len(given) < 2 or not all(given.values()):
        message = "judge rule: exemplars of at least two emotions are needed, or there is nothing to compare"
        raise ConfigError(message, code="missing-key", where="exemplars")
    found = [_exemplar(emotion, text) for emotion, texts in given.items() for text in texts]
    texts = [one.text for one in found]
    likeness = likeness_of(product(texts, texts))
    rivals = {emotion: [other.text for other in found if other.emotion != emotion] for emotion in given}
    return [replace(x, room=1 - max(likeness[x.text, text] for text in rivals[x.emotion])) for x in found]


def _exemplar(emotion: str, text: str) -> _Exemplar:
    where = f"exemplars.{emotion}"
    template = Template(text, ("thing",), where=where)
    words = " ".join(words_of(template.fill({"thing": " "})))
    if not words:
        message = f"{where}: {text!r} has no word to be compared"
        raise ConfigError(message, code="bad-value", where=where)
    return _Exemplar(emotion, words, bool(template.names))
