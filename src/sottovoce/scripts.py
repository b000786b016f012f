"""Scripts (writing systems): which put spaces between words, and how a text falls into words or characters."""

import unicodedata

import regex

# Han, kana and the scripts of mainland South-East Asia and Tibet run words together (Unicode Standard, UAX #29).
_NAMES = "Han Hira Kana Bopo Thai Lao Khmr Mymr Tibt Yiii Tale Talu Lana Tavt".split()
_SPACELESS = "[" + "".join(rf"\p{{scx={name}}}" for name in _NAMES) + "]"
_LETTER = r"[\p{L}\p{M}\p{N}_]"
_CHARACTER = rf"[{_SPACELESS}&&{_LETTER}]"
_GLUED = rf"[{_SPACELESS}\p{{Hangul}}]"  # Korean particles follow their noun without a space
_WORDLIKE = rf"[{_LETTER}--{_GLUED}]"
_PREFIX = "(?:[وف]?[بكل]?(?:ال|ل)?)"  # Arabic conjunctions, prepositions and the article


def _compiled(pattern: str) -> regex.Pattern[str]:
    return regex.compile(pattern, regex.V1)


_UNITS = _compiled(rf"{_CHARACTER}|[{_LETTER}--{_SPACELESS}]+")
_MIXED = _compiled(rf"{_CHARACTER}|(?:(?!{_CHARACTER})\S)+")
_ONE, _GLUING = _compiled(_CHARACTER), _compiled(_GLUED)
_HANGUL, _ARABIC = _compiled(r"\p{Hangul}"), _compiled(r"\p{Arabic}")
_LETTERS = _compiled(r"[\p{L}\p{M}]")
_UNSEEN = _compiled(r"\p{Cf}")  # joiners, direction marks, soft hyphens
_OPTIONAL = _compiled(r"[\p{scx=Arab}&&[\p{M}\u0640]]")  # vowel marks, and what widens a word
_NOT_ENGLISH = _compiled(r"[\p{L}--[a-z]]")


def nfc(text: str) -> str:
    """A text in Unicode's composed form (NFC), in which equal texts have equal characters."""
    return unicodedata.normalize("NFC", text)


def folded(text: str) -> str:
    """A text in NFC and lower case, without characters that nobody sees."""
    return _UNSEEN.sub("", nfc(text).lower())


def units(text: str) -> list[str]:
    """Words, and the single characters of scripts that do not put spaces between words; no punctuation or symbols."""
    return _UNITS.findall(text)


def mixed(text: str) -> list[str]:
    """As `units`, but nothing except white space is left out: the units of a mixed error rate."""
    return _MIXED.findall(text)


def letters(text: str) -> str:
    """The letters of a text, with their marks."""
    return "".join(_LETTERS.findall(text))


def runs_words_together(text: str) -> bool:
    """Whether most letters of a text are of scripts without spaces between words."""
    found = letters(text)
    return 2 * len(_ONE.findall(found)) > len(found)


def is_foreign_to_english(text: str) -> bool:
    """Whether a text holds a letter that English has not."""
    return bool(_NOT_ENGLISH.search(nfc(text).lower()))


def searched(text: str) -> str:
    """A text as `standing` looks into it: folded, and without the marks that Arabic may leave out."""
    return _OPTIONAL.sub("", folded(text))


def standing(texts: list[str]) -> regex.Pattern[str]:
    """Pattern whose group `text` is one of `texts`, as `searched` gives them, where it stands as words of a sentence.

    A word ends where no letter, mark or digit of a script with spaces goes on. Korean words may go on behind it, Arabic
    ones may have a prefix, and in scripts without spaces any place will do. Of several at one place the longest counts.
    """
    longest_first = sorted(texts, key=len, reverse=True)
    return _compiled("|".join(map(_bounded, longest_first)))


def _bounded(text: str) -> str:
    before, after = rf"(?<!{_WORDLIKE})", rf"(?!{_WORDLIKE})"
    if _HANGUL.match(text):
        before = r"(?<!\p{Hangul})"
    elif _ONE.match(text):
        before = ""
    elif _ARABIC.match(text):
        before += _PREFIX
    if _GLUING.match(text[-1:]):
        after = ""
    return f"{before}(?P<text>{regex.escape(text)}){after}"
