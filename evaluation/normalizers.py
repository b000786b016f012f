"""Text normalizers and units of error rates: what is compared of a transcript, and what counts as one error."""

import unicodedata
from collections.abc import Callable
from functools import cache

import regex

from sottovoce.scripts import folded, is_foreign_to_english, mixed, nfc, runs_words_together

_MARKED = regex.compile(r"[<\[][^>\]]*[>\]]|\([^)]+\)")  # "[noise]", "(laughs)": as Whisper's normalizers
_BETWEEN = regex.compile(r"[^\p{L}\p{M}\p{N}]+")
_FOREIGN = 0.1  # of the references, beyond which the English normalizer is not for this language


def english(text: str) -> str:
    """Whisper's English normalizer (Radford et al., 2022, appendix C): spelling, numbers, fillers; no diacritics.

    It reads "oh" as the digit 0, in everybody's results.
    """
    return _whisper()(text)


def basic(text: str) -> str:
    """Lower case without punctuation, symbols and what stands in brackets, for any language: letters keep their marks.

    Whisper's own basic normalizer drops marks with the symbols, and with them the vowels of Hindi and Thai.
    """
    plain = folded(unicodedata.normalize("NFKC", _MARKED.sub("", text)))
    composed = plain.replace("\u0e4d\u0e32", "\u0e33").replace("\u0ecd\u0eb2", "\u0eb3")  # AM of Thai and Lao
    return _BETWEEN.sub(" ", composed).strip()


def none(text: str) -> str:
    """The text as it is, in Unicode's composed form (NFC)."""
    return nfc(text)


def characters(text: str) -> list[str]:
    """Code points without white space."""
    return list("".join(text.split()))


NORMALIZERS: dict[str, Callable[[str], str]] = {"english": english, "basic": basic, "none": none}
UNITS: dict[str, tuple[str, Callable[[str], list[str]]]] = {  # of a rate: what they are, and those of a text
    "wer": ("words", str.split),
    "cer": ("characters", characters),
    "mer": ("characters and words", mixed),
}


def rate_of(name: str) -> tuple[str, str]:
    """Rate and normalizer of an error rate as results call it, such as `cer/basic`; of `wer` it is the English one."""
    rate, _, normalizer = name.partition("/")
    return rate, normalizer or "english"


def doubts(name: str, references: list[str]) -> list[str]:
    """Why an error rate looks wrong for such texts."""
    rate, normalizer = rate_of(name)
    foreign, together = (sum(map(test, references)) for test in (is_foreign_to_english, runs_words_together))
    found = []
    if normalizer == "english" and foreign > _FOREIGN * len(references):
        found.append(
            f"{foreign} of {len(references)} references hold letters that English has not, whose marks the english "
            "normalizer takes away: set `normalizer: basic` (tasks.asr)"
        )
    if rate == "wer" and 2 * together > len(references):
        found.append(
            f"{together} of {len(references)} references are in scripts without spaces, where a sentence counts as "
            "one word: set `metric: cer` or `mer` (tasks.asr)"
        )
    return found


@cache  # its spelling table takes half a second to read
def _whisper() -> Callable[[str], str]:
    from whisper.normalizers import EnglishTextNormalizer

    normalizer: Callable[[str], str] = EnglishTextNormalizer()
    return normalizer
