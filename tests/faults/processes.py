"""Processes that are killed, warned, or left alone by another."""

import signal
from collections.abc import Iterator

from sottovoce.lightning_modules.speech_llm import SpeechLLM
from sottovoce.llms.answer_cache import AnswerCache
from sottovoce.training.audio_reader import AudioReader
from tests.faults.bench import Bench
from tests.faults.checks import Row
from tests.faults.process import Ended, fit, fit_on_two
from tests.faults.sabotage import Moment, at, before, kill_readers, send, torn

NAMES = ("joint", "disentangle", "holistic")
KILL = -signal.SIGKILL


def killed(bench: Bench, count: int) -> Row:
    """One run, killed again and again: in any Python function, and in every fourth case in a checkpoint's write."""
    row = Row("SIGKILL at random moments of the three stages", count)
    command = bench.world.recipe("killed")
    writes = 0
    for number, moment in enumerate(bench.moments(count)):
        tears = number % 4 == 1 and moment[:2] < ("holistic", 12)  # after which no checkpoint may be due
        act = torn(moment, bench.random.random() * 1.2) if tears else at(moment, send(signal.SIGKILL))
        ended = fit(command, act)
        writes += tears
        row.demand(ended.code == KILL, f"{moment}: exit {ended.code}: {ended.output[-400:]}")
    row.demand_recovery(command, bench.whole, note="; no example repeated or skipped in the result")
    row.ended = f"{writes} of them in the write of a checkpoint; then finished: same bits"
    return row


def warned(bench: Bench, count: int) -> Row:
    """SIGTERM in every part of a run."""
    drawn = bench.moments(count * 4)
    later = [p for p in drawn if p.stage == "disentangle" or (p.stage == "joint" and p.step > 7)]
    training = [at(moment, send(signal.SIGTERM)) for moment in later[:count]]
    warn = send(signal.SIGTERM)
    parts = {
        "clips are read": before(AudioReader, "_load", warn, 3),
        "validation": before(SpeechLLM, "validation_step", warn, 2),  # the first of all
        **{f"training, {i + 1}": act for i, act in enumerate(training)},
        "the LLM is asked": before(AnswerCache, "add", warn),  # before the third stage
        "scoring": before(SpeechLLM, "generate", warn),
    }
    row = Row("SIGTERM while clips are read, the LLM is asked, training, validating, scoring", len(parts))
    command, slowest = bench.world.recipe("warned", data={"cache": str(bench.world.folder / "warned-cache")}), 0.0
    for part, act in parts.items():
        ended = fit(command, act)
        sent = [entry["at"] for entry in command.entries() if "sent" in entry]
        told = ended.code == 143 and "same command" in ended.error
        row.demand(told, f"{part}: exit {ended.code}: {ended.output[-400:]}")
        slowest = max(slowest, ended.at - sent[-1]) if sent else slowest
    row.demand(slowest < 30, f"the slowest took {slowest:.1f} s")
    row.demand_recovery(command, bench.whole)
    row.ended = f"exit 143 after {slowest:.1f} s at most; then finished: same bits"
    return row


def reader_killed(bench: Bench) -> Row:
    """Processes that read audio are killed, as the system does when memory is short."""
    row = Row("data workers killed", 1)
    command = bench.world.recipe("reader", data={"num_workers": 2})
    row.demand_line(fit(command, at(Moment("disentangle", 4), kill_readers)), "reads audio", "data.num_workers")
    row.demand_recovery(command, bench.whole)
    row.ended = "exit 2, a line that says so; then finished: same bits"
    return row


def rank_dies(bench: Bench, count: int) -> Iterator[Row]:
    """Of two processes that train together, one is killed, fails, or is warned."""
    trainer = {"devices": 2, "strategy": "ddp"}
    whole = bench.world.recipe("two", trainer=trainer)
    row = Row("one of two DDP processes killed", count)
    for ended in fit_on_two(whole):
        row.demand_finished(ended)
    command = bench.world.recipe("two-killed", trainer=trainer)
    slowest = 0.0
    for number in range(count):
        rank, moment = number % 2, Moment(NAMES[number * 3 // count], number % 3 * 2, bench.random.randrange(1000))
        act = [at(moment, send(signal.SIGKILL))]
        both = fit_on_two(command, *([(), act] if rank else [act, ()]))
        other: Ended = both[1 - rank]
        row.demand(both[rank].code == KILL, f"{moment}: exit {both[rank].code}: {both[rank].output[-400:]}")
        row.demand_line(other, "another process of this run has ended")
        slowest = max(slowest, abs(both[0].at - both[1].at))
    row.demand(slowest < 60, f"the other process went on for {slowest:.0f} s")
    row.demand_recovery(command, whole, fit_on_two, ", counted on both")
    row.ended = f"the other: exit 2, a line that says so, within {slowest:.1f} s; then finished: same bits"
    yield row
    row = Row("SIGTERM to one of two DDP processes", 1)
    command = bench.world.recipe("two-warned", trainer=trainer)
    both = fit_on_two(command, (), [at(Moment("joint", 4, 700), send(signal.SIGTERM))])
    row.demand([ended.code for ended in both] == [143, 143], f"exits {[(e.code, e.output[-300:]) for e in both]}")
    row.demand_recovery(command, whole, fit_on_two, ", counted on both")
    row.ended = "both: exit 143 at the same step; then finished: same bits"
    yield row
