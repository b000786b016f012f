"""Sentences, styles and replies of the demo world: what is said, how, and what a kind listener answers.

Words and style are drawn independently, so that the words never give the style away. Sentences are assigned
to a split by a hash of their words and voices by name: no sentence and no voice of one split is ever in another.
"""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

VERBS = "found lost bought sold broke fixed painted cleaned carried opened closed dropped wanted kept left".split()
ADJECTIVES = "red blue old new small big green heavy broken quiet".split()
NOUNS = (
    "umbrella bicycle guitar lamp window ticket camera letter basket jacket mirror table kettle pillow ladder "
    "hammer blanket candle wallet phone book chair bottle piano cake"
).split()
PLACES = (
    "station market office garden kitchen library beach school museum harbor hotel village bridge park farm".split()
)
TIMES = ("today", "yesterday", "this morning", "last night", "last week", "on monday", "on sunday")
PEOPLE = ("i", "we", "they")
NAMES = "anna tom maria john sara peter lucy david".split()
WORDS = (*VERBS, *ADJECTIVES, *NOUNS, *PLACES, *NAMES)

# No word stands for two things: a soft prompt has no word order to tell them apart.
CHOICES: dict[str, tuple[str, ...]] = {
    "gender": ("male", "female"),
    "pitch": ("low", "high"),
    "tempo": ("slow", "fast"),
    "energy": ("weak", "strong"),
    "emotion": ("neutral", "happy", "sad", "angry"),
}

REPLIES = {
    "neutral": "I see. What will you do with {thing} next{name}?",
    "happy": "That is wonderful news about {thing}{name}! I am so glad for you.",
    "sad": "I am sorry to hear that{name}. Do you want to talk about {thing}?",
    "angry": "I understand why you are upset about {thing}{name}. Take a slow breath.",
}


@dataclass(frozen=True)
class Style:
    """How an utterance is said; every field holds one of `CHOICES[field]`."""

    gender: str
    pitch: str
    tempo: str
    energy: str
    emotion: str


def draw_style(rng: random.Random) -> Style:
    return Style(**{name: rng.choice(values) for name, values in CHOICES.items()})


def split_of(sentence: str) -> str:
    """The split that a sentence belongs to, for ever: 80 % train, 10 % validation, 10 % test."""
    bucket = int.from_bytes(hashlib.sha256(sentence.encode()).digest()[:4], "big") % 10
    return {0: "test", 1: "validation"}.get(bucket, "train")


def draw_sentence(
    rng: random.Random, split: str, people: Sequence[str] = PEOPLE, verbs: Sequence[str] = tuple(VERBS)
) -> str:
    """A sentence of 5 to 9 words that belongs to `split`."""
    while True:
        words = [rng.choice(people), rng.choice(verbs), "the"]
        detail = rng.choice(("adjective", "adjective", "place", "place", "none"))
        if detail == "adjective":
            words.append(rng.choice(ADJECTIVES))
        words.append(rng.choice(NOUNS))
        if detail == "place":
            words += ["at", "the", rng.choice(PLACES)]
        words.append(rng.choice(TIMES))
        sentence = " ".join(words)
        if split_of(sentence) == split:
            return sentence


def noun_of(sentence: str) -> str:
    return next(word for word in sentence.split() if word in NOUNS)


def reply(sentence: str | None, emotion: str, name: str | None = None) -> str:
    """What a kind listener answers: about the thing that was named, in the light of the speaker's emotion.

    A listener who did not understand the words says `it`.
    """
    thing = f"the {noun_of(sentence)}" if sentence else "it"
    return REPLIES[emotion].format(thing=thing, name=f", {name}" if name else "")


def draw_small_talk(rng: random.Random) -> tuple[list[tuple[str, str]], str | None]:
    """Zero to two exchanges of user and assistant, and the speaker's name if it was given: what a good reply uses."""
    exchanges, name = [], None
    if rng.random() < 0.5:
        name = rng.choice(NAMES)
        exchanges.append((f"hello, my name is {name}", f"Hello {name}, it is nice to meet you."))
    if rng.random() < 0.3:
        when = rng.choice(("today", "this morning"))
        exchanges.append((f"how are you {when}", "I am fine, thank you. How can I help you?"))
    return exchanges, name


def follow_up(rng: random.Random, sentence: str, style: Style, name: str | None) -> tuple[str, str]:
    """A typed question after a spoken turn, and what only a listener of both words and voice can answer."""
    answers = {
        "what did i talk about?": f"You talked about the {noun_of(sentence)}.",
        "how did i sound?": f"You sounded {style.emotion}.",
        "what is my name?": f"Your name is {name}." if name else "You did not tell me your name.",
    }
    return rng.choice(list(answers.items()))
