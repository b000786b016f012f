"""Corpora that a recipe or `prepare` names: each writes manifests with its official splits."""

from typing import TYPE_CHECKING

from sottovoce.registry import Registry, lazy_attributes

if TYPE_CHECKING:
    from sottovoce.data.corpora.base import Corpus

CORPORA: "Registry[Corpus]" = Registry(
    "corpus",
    {
        "dailytalk": "sottovoce.data.corpora.dailytalk",
        "expresso": "sottovoce.data.corpora.expresso",
        "librispeech": "sottovoce.data.corpora.librispeech",
        "meld": "sottovoce.data.corpora.meld",
        "styletalk": "sottovoce.data.corpora.styletalk",
        "textrolspeech": "sottovoce.data.corpora.textrolspeech",
        "voicebench": "sottovoce.data.corpora.voicebench",
    },
)
__all__ = ["CORPORA", "Corpus"]
__getattr__ = lazy_attributes(__name__, {"Corpus": "base"})
