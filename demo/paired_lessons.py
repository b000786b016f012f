"""Training chats of the demo's deeper LLM, in text: the right answer depends on who speaks.

Where a caption or a tag names what matters, the LLM answers accordingly, whatever was done, the dangerous things too;
where nothing does, it answers the words. So it knows in text what to answer to a child, and lacks only the voice.
"""

from sottovoce.demo.lessons import COPYING, Lesson, Lessons, messages
from sottovoce.demo.paired_words import SAFETY_TOPICS, TOPICS, VALUES, answer, category_of, draw_text
from sottovoce.demo.world import draw_style

PAIRED = ("plain", "paired", "unknown")  # no style is given; what matters is given; something else is given
QUESTIONS = ("age", "gender", "emotion", "pitch", "tempo", "energy")
DEEDS = (*TOPICS.values(), SAFETY_TOPICS, *TOPICS.values())  # no category is more usual than another, or nearly
KINDS = (*COPYING, *QUESTIONS, *PAIRED)


class PairedLessons(Lessons):
    """Draws chats as `Lessons` does: copying, questions about a style, and replies as `paired_words` has them."""

    rooms = (COPYING, QUESTIONS, ("plain", "paired", "paired", "paired", "unknown", "unknown"))
    kinds = KINDS

    def lesson(self, kind: str) -> Lesson:
        """A lesson of one of KINDS."""
        sentence = draw_text(self.rng, self.split, self.rng.choice(DEEDS))
        labels = {"age": self.rng.choice(VALUES["age"]), **vars(draw_style(self.rng))}
        if kind in QUESTIONS:
            shown = {**self._some(labels), kind: labels[kind]}
            user = self._user(sentence if self.rng.random() < 0.6 else None, shown)
            return messages(self.rng.choice(self.wordings[kind]), user), self._answer(kind, labels)
        if kind in PAIRED:
            return self._reply(kind, sentence, labels)
        words = self._copied(kind, sentence)
        shown = self._some(labels) if self.rng.random() < 0.6 else {}
        if self.rng.random() < 0.3:
            return messages("", f"{self.aligned['asr']} {self._user(words, shown)}"), words
        return messages(self.rng.choice(self.wordings["asr"]), self._user(words, shown)), words

    def _reply(self, kind: str, sentence: str, labels: dict[str, str]) -> Lesson:
        alone = kind == "plain" or (kind == "paired" and self.rng.random() < 0.4)  # nothing but what matters is given
        shown = {} if alone else self._some(labels)
        category = category_of(sentence)
        if kind == "paired":
            shown[category] = labels[category]
        else:
            shown.pop(category, None)
        prompt = "" if self.rng.random() < 0.6 else self.rng.choice(self.wordings["dialogue"])
        return messages(prompt, self._user(sentence, shown)), answer(sentence, shown)

    def _some(self, labels: dict[str, str]) -> dict[str, str]:
        """Any number of them, one or more."""
        return dict(self.rng.sample(sorted(labels.items()), self.rng.randint(1, len(labels))))

    def _user(self, sentence: str | None, shown: dict[str, str]) -> str:
        """Words after tags (`<child> <sad> we ...`), or under a caption; loosely, now and then, as in `Lessons`."""
        words = sentence and self._words(sentence)
        if shown and words and self.rng.random() < 0.5:
            tags = self.rng.sample(sorted(shown.values()), len(shown))
            return " ".join([*(f"<{tag}>" for tag in tags), words])
        return "\n".join(filter(None, [self._caption(shown) if shown else None, words]))
