"""Scripts: what is a word, what a character, and where a label stands in a sentence."""

import unicodedata

import pytest

from sottovoce.scripts import folded, is_foreign_to_english, mixed, runs_words_together, searched, standing, units


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Don't stop, 3 times!", ["don", "t", "stop", "3", "times"]),
        ("我想买iPhone手机。", ["我", "想", "买", "iphone", "手", "机"]),
        ("ラーメン、人々", ["ラ", "ー", "メ", "ン", "人", "々"]),
        ("안녕 하세요", ["안녕", "하세요"]),
        ("दिन अच्छा।", ["दिन", "अच्छा"]),
        ("น้ำ", ["น", "้", "ำ"]),
        ("cafe\u0301", ["café"]),
        ("می\u200cخواهم", ["میخواهم"]),
        ("👍 …", []),
    ],
)
def test_a_text_falls_into_words_or_characters(text: str, found: list[str]) -> None:
    assert units(folded(text)) == found


def test_mixed_units_leave_nothing_out() -> None:
    text = "我想买 iPhone手机。OK? दिन-रात"
    assert mixed(text) == ["我", "想", "买", "iPhone", "手", "机", "。OK?", "दिन-रात"]
    assert "".join(mixed(text)) == "".join(text.split())


@pytest.mark.parametrize(
    ("labels", "sentence", "found"),
    [
        (["高兴", "不高兴"], "说话人听起来不高兴。", ["不高兴"]),
        (["悲しい", "怒っている"], "話者は怒っているようです。", ["怒っている"]),
        (["기쁨", "슬픔"], "감정은 기쁨입니다.", ["기쁨"]),
        (["안", "불안"], "감정은 불안입니다.", ["불안"]),
        (["안"], "감정은 불안입니다.", []),
        (["สุข", "เศร้า"], "ผู้พูดรู้สึกสุขมาก", ["สุข"]),
        (["سعيد", "حزين"], "يبدو المتحدثُ سعيدٌ.", ["سعيد"]),
        (["سعيد"], "هو السعيد والسعيد", ["سعيد", "سعيد"]),
        (["سعيد"], "يبدو بسعيدة", []),
        (["दुख", "सुख"], "वक्ता को दुख है।", ["दुख"]),
        (["दुख"], "वक्ता दुखी है।", []),  # a vowel sign goes on
        (["happy"], "说话人听起来happy。", ["happy"]),
        (["happy"], "감정은 happy입니다", ["happy"]),
        (["happy", "very happy"], "very happy, happy", ["very happy", "happy"]),
        (["happy"], "unhappy happy_ happyé", []),
        (["a.b", "c+"], "axb c+ a.b!", ["c+", "a.b"]),
    ],
)
def test_a_label_is_found_where_it_stands_as_a_whole(labels: list[str], sentence: str, found: list[str]) -> None:
    for form in ("NFC", "NFD"):
        pattern = standing([searched(unicodedata.normalize(form, label)) for label in labels])
        seen = [match["text"] for match in pattern.finditer(searched(sentence))]
        assert seen == [searched(label) for label in found]


def test_what_a_text_is_written_in() -> None:
    assert runs_words_together("今天 iPhone 天气很好") is False and runs_words_together("今天天气")
    assert not runs_words_together("안녕") and not runs_words_together("")
    assert is_foreign_to_english("schön") and is_foreign_to_english("мой")
    assert not is_foreign_to_english("Don't — 3 “times”!")
