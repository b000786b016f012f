"""Published corpora in their official layouts: each turns itself into manifests with its official splits."""

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
