"""What the command `prepare` does: a corpus by name becomes manifests, and everything that is in none is named."""

import argparse
from pathlib import Path

from sottovoce.config_tree import read_overrides
from sottovoce.data.corpora import CORPORA
from sottovoce.data.corpora.download import patience
from sottovoce.data.corpora.published import Published
from sottovoce.data.sources.kinds import KINDS
from sottovoce.errors import ConfigError

HOLD_OUT = "hold_out"  # of every published corpus, beside its own knobs


def prepare(arguments: argparse.Namespace) -> None:
    """Write the manifests of `arguments.corpus` to `arguments.out` and print what came of it."""
    name, out, source = arguments.corpus, Path(arguments.out), arguments.source
    knobs = read_overrides(arguments.overrides)
    speakers = knobs.pop(HOLD_OUT, None)
    if name in KINDS and name not in CORPORA:
        told = f"it is no corpus but a format: sottovoce manifest SOURCE --format {name} --out {arguments.out}"
        raise ConfigError.at("corpus", "unknown-name", told)
    takes_source = "source" in CORPORA.knobs(name)
    if takes_source and not source:
        told = "say where it was unpacked: --source FOLDER, which --download fills (docs/corpora.md has its layout)"
        raise ConfigError(f"corpus {name}: {told}")
    if source and not takes_source:
        raise ConfigError(f"corpus {name}: it makes its own audio and takes no --source")
    if arguments.mirror and not arguments.download:
        raise ConfigError.at("mirror", "conflict", "it says where to download from, which --download asks for")
    corpus = CORPORA.build({"type": name, **({"source": source} if source else {}), **knobs})
    if speakers is not None:
        if not isinstance(corpus, Published) or not isinstance(speakers, dict):
            told = "which speakers of a published corpus, such as '{test: [ex04]}', or '{test: 0.1}'"
            raise ConfigError.at(HOLD_OUT, "bad-value", told)
        corpus.hold_out(speakers)
    if arguments.download:
        if not isinstance(corpus, Published):
            raise ConfigError.at("download", "conflict", f"{name} is no published corpus")
        with patience():
            corpus.download(arguments.mirror and arguments.mirror.rstrip("/"))
    if isinstance(corpus, Published):
        print(corpus.write(out))
    else:
        for split, manifest in corpus.prepare(out).items():
            print(f"{split}: {manifest}")
