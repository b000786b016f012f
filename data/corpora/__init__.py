"""Published corpora in their official layouts: each turns itself into manifests with its official splits.

Lhotse has recipes for LibriSpeech and DailyTalk. They log what is missing and go on, or stop at the first; here all
of it is to be named, which takes no more lines than calling them would.
"""

from sottovoce.data.corpora import (
    dailytalk,
    expresso,
    librispeech,
    meld,
    styletalk,
    textrolspeech,
    voicebench,
)
from sottovoce.data.corpora.base import CORPORA, Corpus

__all__ = [
    "CORPORA",
    "Corpus",
    "dailytalk",
    "expresso",
    "librispeech",
    "meld",
    "styletalk",
    "textrolspeech",
    "voicebench",
]
