"""Published corpora in their official layouts: each turns itself into manifests with its official splits.

Lhotse has recipes for LibriSpeech and DailyTalk. They log what is missing and go on, or stop at the first; here all
of it is to be named, which takes no more lines than calling them would.
"""

from undertone.data.published import (  # each registers itself
    dailytalk,
    expresso,
    librispeech,
    meld,
    styletalk,
    textrolspeech,
    voicebench,
)

__all__ = ["dailytalk", "expresso", "librispeech", "meld", "styletalk", "textrolspeech", "voicebench"]
