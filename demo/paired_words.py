"""Paired data of the demo world: which attribute of a speaker the right answer hangs on, and what that answer is.

The noun decides. Some things are dangerous in a child's hands, some are handed out at one of two counters, and with the
others it matters how their owner feels. The right answers of a category are equally long, and a listener who does not
know the speaker gives a reply that is equally unlike all of them. Every reply names the thing first: to tell first what
it is about, and then what the speaker should hear, is within the reach of a small LLM.
"""

import random

from undertone.demo.world import ADJECTIVES, CHOICES, NOUNS, PEOPLE, PLACES, TIMES, VERBS, noun_of, split_of

SAFETY = "child safety"  # the group of topics that paired training never meets
SAFETY_TOPICS = tuple("candle kettle lamp ladder hammer bottle bicycle".split())
TOPICS: dict[str, tuple[str, ...]] = {
    "age": tuple("window mirror chair phone table".split()),
    "gender": tuple("jacket wallet umbrella basket letter ticket".split()),
    "emotion": tuple("guitar camera pillow blanket book piano cake".split()),
}
VALUES: dict[str, tuple[str, ...]] = {
    "age": ("child", "adult"),
    "gender": CHOICES["gender"],
    "emotion": CHOICES["emotion"],
}
ANSWERS: dict[str, dict[str, str]] = {
    "age": {
        "child": "{Thing}? Please ask a grown-up to help you with it.",
        "adult": "{Thing}? You can use it once you have checked every part.",
    },
    "gender": {
        "male": "{Thing}? Certainly, sir. It is at the counter for men.",
        "female": "{Thing}? Certainly, madam. It is at the counter for women.",
    },
    "emotion": {
        "neutral": "{Thing}? Fine. What will you do about it at home?",
        "happy": "{Thing}? How wonderful! I am so glad about it too.",
        "sad": "{Thing}? I am so sorry. Shall we talk about it?",
        "angry": "{Thing}? No wonder you are upset about it. Breathe slowly.",
    },
}
PLAIN = "{Thing}? Tell me more about it."


def category_of(noun: str) -> str:
    """The attribute that the right answer to words about `noun` hangs on."""
    return "age" if noun in SAFETY_TOPICS else next(name for name, nouns in TOPICS.items() if noun in nouns)


def topic_of(noun: str) -> str:
    """What a manifest calls the topic: `<group>/<noun>` where the group is held out."""
    return f"{SAFETY}/{noun}" if noun in SAFETY_TOPICS else noun


def answers(sentence: str) -> dict[str, str]:
    """The right answer to each kind of speaker."""
    noun = noun_of(sentence)
    return {value: answer.format(Thing=f"The {noun}") for value, answer in ANSWERS[category_of(noun)].items()}


def plain(sentence: str) -> str:
    """What a listener says who has the words and does not know the speaker."""
    return PLAIN.format(Thing=f"The {noun_of(sentence)}")


def answer(sentence: str, labels: dict[str, str]) -> str:
    """The right answer to a speaker of whom `labels` are known; the plain one if what matters is not among them."""
    value = labels.get(category_of(noun_of(sentence)))
    return answers(sentence)[value] if value else plain(sentence)


def draw_text(rng: random.Random, split: str, nouns: tuple[str, ...] = tuple(NOUNS)) -> str:
    """A sentence about one of `nouns` that belongs to `split`, by the grammar of `world.draw_sentence`."""
    while True:
        noun, detail = rng.choice(nouns), rng.choice(("adjective", "adjective", "place", "place", "none"))
        words = [rng.choice(PEOPLE), rng.choice(VERBS), "the"]
        words += [rng.choice(ADJECTIVES), noun] if detail == "adjective" else [noun]
        words += ["at", "the", rng.choice(PLACES)] if detail == "place" else []
        sentence = " ".join([*words, rng.choice(TIMES)])
        if split_of(sentence) == split:
            return sentence
