"""What the command `manifest` does: data in another format become manifests; what is in none is named."""

import argparse
from collections.abc import Iterable
from pathlib import Path

from sottovoce.data.corpora.report import Report
from sottovoce.data.sources.convert import Request, convert
from sottovoce.errors import ConfigError, brief

_SHORT = ("id", "audio", "text", "speaker", "caption", "response")  # keys with an option of their own


def manifest(arguments: argparse.Namespace) -> None:
    """Write the manifests of `arguments.source` to `arguments.out`; print what came of it, and what a recipe says."""
    short = {key: found for key in _SHORT if (found := getattr(arguments, key))}
    request = Request(
        source=arguments.source, kind=arguments.format, split=arguments.split, subset=arguments.subset,
        columns={**dict(_pairs("--column", arguments.column)), **short},
        labels=dict(_pairs("--label", arguments.label)), values=_values(arguments.map), root=arguments.root,
        split_column=arguments.split_column, split_by=arguments.split_by, seed=arguments.seed,
        validation=arguments.validation, test=arguments.test,
    )  # fmt: skip
    report = convert(request, Path(arguments.out))
    print(report)
    print(in_a_recipe(report))


def in_a_recipe(report: Report) -> str:
    """The lines of a recipe that read these manifests."""
    allow = f", allow: [{report.clips}]" if report.clips else ""
    lines = [f"  {name}: [{{manifest: {file}{allow}}}]" for name, file in report.manifests.items()]
    need = ", which also needs a validation side (--split-by speaker --validation 0.1 --test 0.1 makes one)"
    return "\n".join([f"In a recipe{'' if 'validation' in report.splits else need}:", "data:", *lines])


def _pairs(option: str, words: Iterable[str]) -> list[tuple[str, str]]:
    """`KEY=VALUE` of each word; several may stand in one, apart by commas."""
    pairs = [pair.partition("=") for word in words for pair in word.split(",")]
    for key, sign, value in pairs:
        if not (key and sign and (value or option == "--map")):
            told = f"write KEY=VALUE, such as age=age_group; found {brief(key, 100)!r}"
            raise ConfigError.at(option, "bad-value", told)
    return [(key.strip(), value.strip()) for key, _, value in pairs]


def _values(words: Iterable[str]) -> dict[str, dict[str, str]]:
    """Attribute to value to label, of words such as `age:kid=child`."""
    maps: dict[str, dict[str, str]] = {}
    for key, label in _pairs("--map", words):
        attribute, sign, value = key.partition(":")
        if not (attribute and sign and value):
            told = f"write ATTRIBUTE:VALUE=LABEL, such as age:kid=child; found {brief(key, 100)!r}"
            raise ConfigError.at("--map", "bad-value", told)
        maps.setdefault(attribute, {})[value] = label
    return maps
