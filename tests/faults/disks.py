"""Disks that are full, files that are damaged or gone."""

import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

from sottovoce.encoders.feature_cache import FeatureCache
from sottovoce.encoders.feature_shards import Shards
from sottovoce.errors import CheckpointError
from sottovoce.lightning_modules import fit as training
from sottovoce.lightning_modules.checkpointing import AtomicCheckpointIO, read_checkpoint
from sottovoce.llms.answer_cache import AnswerCache
from sottovoce.scoring import evaluate
from tests.faults.bench import Bench
from tests.faults.checks import Row
from tests.faults.process import fit
from tests.faults.sabotage import Moment, at, full, hide, send
from tests.faults.world import Command


def disk_full(bench: Bench) -> Row:
    """The disk takes no more in each kind of file; what was written before is whole, and the same command goes on."""
    cache = bench.world.folder / "full-cache"
    command = bench.world.recipe("full", data={"cache": str(cache)})
    few = lambda *_: 100  # noqa: E731
    parts = {
        "features": full(FeatureCache, "put_many", few, 2),
        "first checkpoint": full(AtomicCheckpointIO, "save_checkpoint", few),
        "last.ckpt": full(AtomicCheckpointIO, "save_checkpoint", few, 2),
        "best.ckpt": full(AtomicCheckpointIO, "save_checkpoint", few, 2),
        "targets": full(AnswerCache, "add", lambda c, *_: 10 + (c.file.stat().st_size if c.file.is_file() else 0)),
        "scores": full(evaluate, "write_results", few),
        "bundle": full(training, "write_bundle", few),
    }
    row = Row("disk full while " + ", ".join(parts) + " are written", len(parts))
    for part, act in parts.items():
        ended = fit(command, act)
        row.demand_line(ended, "cannot be written: File too large")
        row.demand(_all_whole(command), f"{part}: a checkpoint is not whole")
    row.demand_recovery(command, bench.whole)
    row.ended = "exit 2, a line that names the file; then finished: same bits"
    return row


def _all_whole(command: Command) -> bool:
    try:
        return all(read_checkpoint(file) for file in command.run.glob("stages/*/*.ckpt"))
    except CheckpointError:
        return False


def clip_gone(bench: Bench) -> Row:
    """A clip vanishes in mid-run, where clips are read in every step."""
    row = Row("an audio file vanishes, read by the run itself and by data workers", 2)
    speech = bench.world.folder / "speech-gone"  # other cases may be reading the other
    shutil.copytree(bench.world.folder / "speech", speech, dirs_exist_ok=True)
    clip, train = speech / "train-7.wav", [{"manifest": str(speech / "train.jsonl")}]
    for workers in (0, 2):
        command = bench.world.recipe(f"gone-{workers}", data={"num_workers": workers, "cache": None, "train": train})
        ended = fit(command, at(Moment("joint", 5), hide(clip)))
        row.demand_line(ended, str(clip), "no such file")
        clip.with_suffix(".hidden").rename(clip)
        row.demand_finished(fit(command))
    row.ended = "exit 2, a line that names it; put back, the same command finished"
    row.lost = "steps since the last checkpoint"
    return row


def damaged(bench: Bench) -> Row:
    """Files that are cut off, or in which one bit is another, found by a run that goes on after a kill."""
    draw = bench.random
    cache = bench.world.folder / "damaged-cache"
    command = bench.world.recipe("damaged", data={"cache": str(cache)})
    row = Row("", 0)
    fit(command, at(Moment("holistic", 9), send(signal.SIGKILL)))
    stages = command.run / "stages"
    last, previous = (stages / "3-holistic" / name for name in ("last.ckpt", "previous.ckpt"))
    features = sorted(cache.glob("features/*/*.tar"))
    targets = next(cache.glob("targets/*.answers"))
    stops = {
        "the best checkpoint of a stage before": [stages / "2-disentangle" / "best.ckpt"],
        "both checkpoints of a stage": [last, previous],
        "a cached feature": features,
        "a cached target": [targets],
    }
    for spoil in (cut_off, flipped):
        for what, spoiled in stops.items():
            if what.startswith("a cached") and spoil is cut_off:
                continue  # as after a kill in its write: made again, see below
            kept = {file: file.read_bytes() for file in spoiled}
            for file in spoiled:
                spoil(file, draw)
            ended = fit(command)
            row.demand_line(ended, "damaged", "safe" if "cached" in what else str(spoiled[0]))
            for file, content in kept.items():
                file.write_bytes(content)
            row.times += 1
    cut_off(last, draw)
    cut_off(targets, draw)
    cut_off(features[0], draw)
    ended = fit(command)
    row.times += 3
    row.demand("last.ckpt is damaged" in " ".join(ended.output.split()), f"it is not named: {ended.output[-800:]}")
    row.demand_recovery(command, bench.whole, lambda _: [ended])
    row.done = "a checkpoint, cached features or a cached target cut off, or one bit of it changed"
    row.ended = "exit 2, a line that names the file; last.ckpt alone: named, gone on from the one before; same bits"
    return row


Spoil = Callable[[Path, random.Random], None]


def cut_off(file: Path, draw: random.Random) -> None:
    """Leave a part of a file."""
    content = file.read_bytes()
    file.write_bytes(content[: draw.randrange(len(content) // 10, len(content))])


def flipped(file: Path, draw: random.Random) -> None:
    """Change one bit of a file, in the second half, where its numbers or its text are; of features, one of each."""
    content = bytearray(file.read_bytes())
    if file.suffix == ".tar":
        shards = Shards(file.parent)
        shards.refresh()
        for place in shards.places.values():
            content[place.offset + draw.randrange(place.size)] ^= 1 << draw.randrange(8)
        file.write_bytes(content)
        return
    content[draw.randrange(len(content) // 2, len(content) * 9 // 10)] ^= 1 << draw.randrange(8)
    file.write_bytes(content)
