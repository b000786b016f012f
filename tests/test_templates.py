"""Templates hold named fields and nothing else: a prompt file can neither fill the memory nor look into objects."""

from pathlib import Path

import pytest

from sottovoce.errors import Code, ConfigError
from sottovoce.templates import Template, uncommented_lines
from tests.helpers.errors import refused

FIELDS = ("text", "label")


def test_fields_are_filled_and_braces_that_are_meant_stay() -> None:
    template = Template("{{{text}}} as {label}, {text}", FIELDS)
    assert template.fill({"text": "{label}", "label": 3, "other": "x"}) == "{{label}} as 3, {label}"
    assert template.names == {"text", "label"} and template.literal == "{} as , "
    with pytest.raises(KeyError, match="label"):
        template.fill({"text": "x"})


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{text:>3000000}", "unsafe"),
        ("{text!r}", "unsafe"),
        ("{text:{label}}", "unsafe"),
        ("{text.__class__}", "unknown-name"),
        ("{text[0]}", "unknown-name"),
        ("{}", "unknown-name"),
        ("{0}", "unknown-name"),
        ("{text", "bad-value"),
        ("text}", "bad-value"),
        ("{label}", "missing-key"),
    ],
)
def test_what_is_no_named_field_is_refused(text: str, code: Code) -> None:
    with refused(code, "prompt.txt:3", ConfigError):
        Template(text, FIELDS, required=["text"], where="prompt.txt:3")


def test_the_nearest_field_is_suggested() -> None:
    with pytest.raises(ConfigError, match=r"unknown field {txt}\. Did you mean 'text'\?"):
        Template("{txt}", FIELDS)


def test_comments_are_left_out_and_lines_keep_their_numbers(tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("# comment\none\n\n#two\n three")
    assert uncommented_lines(tmp_path / "prompt.txt") == [(2, "one"), (3, ""), (5, " three")]


@pytest.mark.parametrize(("raw", "code"), [(None, "not-found"), (b"\xff\xfe", "damaged")])
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, raw: bytes | None, code: Code) -> None:
    file = tmp_path / "prompt.txt"
    if raw:
        file.write_bytes(raw)
    with refused(code, file, ConfigError):
        uncommented_lines(file)
