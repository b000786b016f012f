"""Answers of the demo's paired data: on which attribute of the speaker each depends, and what it is.

What was done decides: some of it is dangerous for a child, some is asked about at one of two counters, and with the
rest it matters how the speaker feels. (Verbs, since the demo's encoder tells them apart in any voice, and nouns not.)
The right answers of a category are equally long, and a listener who does not know the speaker gives a reply that is
equally unlike all of them. Every reply first says what was done: to say that, and then what the speaker should hear, is
within the reach of a small LLM.
"""

import random

from sottovoce.demo.world import VERBS, draw_sentence

SAFETY = "child safety"  # the group of topics that paired training never meets
SAFETY_TOPICS = tuple("fixed opened carried cleaned painted broke dropped".split())
TOPICS: dict[str, tuple[str, ...]] = {
    "age": tuple("bought sold closed".split()),
    "gender": tuple("kept left".split()),
    "emotion": tuple("lost found wanted".split()),
}
ANSWERS: dict[str, dict[str, str]] = {
    "age": {
        "child": "You {did} it? Please ask a grown-up to help you now.",
        "adult": "You {did} it? Then follow the steps in the manual to finish.",
    },
    "gender": {
        "male": "You {did} it? Certainly, sir. Go to the counter for men.",
        "female": "You {did} it? Certainly, madam. Go to the counter for women.",
    },
    "emotion": {
        "neutral": "You {did} it? Fine. What will you do at home now?",
        "happy": "You {did} it? How wonderful! I am so glad for you.",
        "sad": "You {did} it? I am sorry. Shall we talk about that?",
        "angry": "You {did} it? No wonder you are upset. Breathe very slowly.",
    },
}
VALUES = {category: tuple(due) for category, due in ANSWERS.items()}
PLAIN = "You {did} it? Tell me more."


def verb_of(text: str) -> str:
    """What was done."""
    return next(word for word in text.split() if word in VERBS)


def category_of(text: str) -> str:
    """The attribute on which the right answer to somebody who did this depends; the verb alone will do."""
    verb = verb_of(text)
    return "age" if verb in SAFETY_TOPICS else next(name for name, verbs in TOPICS.items() if verb in verbs)


def topic_of(text: str) -> str:
    """What a manifest calls the topic: `<group>/<verb>` where the group is held out."""
    verb = verb_of(text)
    return f"{SAFETY}/{verb}" if verb in SAFETY_TOPICS else verb


def answers(text: str) -> dict[str, str]:
    """The right answer to each kind of speaker."""
    return {value: answer.format(did=verb_of(text)) for value, answer in ANSWERS[category_of(text)].items()}


def plain(text: str) -> str:
    """What a listener says who has the words and does not know the speaker."""
    return PLAIN.format(did=verb_of(text))


def answer(text: str, labels: dict[str, str]) -> str:
    """The right answer to a speaker of whom `labels` are known; the plain one if what matters is not among them."""
    value = labels.get(category_of(text))
    return answers(text)[value] if value else plain(text)


def draw_text(rng: random.Random, split: str, verbs: tuple[str, ...] = tuple(VERBS)) -> str:
    """A sentence that belongs to `split`, in the first person: what the speaker did, one of `verbs`."""
    return draw_sentence(rng, split, ("i", "we"), verbs)
