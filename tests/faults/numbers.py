"""Losses, gradients and weights that are not finite."""

from sottovoce.lightning_modules.checkpointing import read_checkpoint
from tests.faults.bench import Bench
from tests.faults.checks import Row, finite
from tests.faults.process import fit
from tests.faults.sabotage import broken


def one_nan(bench: Bench, what: str) -> Row:
    """One step's loss or gradient is not finite: it changes nothing, and is counted and named."""
    row = Row(f"the {'loss of one row' if what == 'loss' else 'gradient'} is not finite in one step", 1)
    command = bench.world.recipe(f"one-{what}")
    ended = fit(command, broken("joint", range(5, 6), what))
    row.demand_finished(ended)
    entries = command.entries()
    joint = [entry for entry in entries if entry.get("stage") == "joint"]
    begins = {entry["begins"]: entry["weights"] for entry in joint if "begins" in entry}
    rows = next(entry["rows"] for entry in joint if entry.get("step") == 5)
    row.demand(begins[5] == begins[6] != begins[7], "the step has changed weights, or a later one has not")
    skipped = (command.run / "stages" / "1-joint" / "skipped.jsonl").read_text()
    names = [rows[0][0]] if what == "loss" else [each[0] for each in rows]
    row.demand(all(f'"{name}"' in skipped for name in names) and skipped.count("\n") == 1, f"skipped.jsonl: {skipped}")
    row.demand("1 steps left out" in ended.output, "the report does not count it")
    row.demand(finite(command, read_checkpoint), "a checkpoint holds weights that are not finite")
    row.ended = "step left out; counted in the report, utterances in skipped.jsonl; weights as before it"
    row.lost = "one update"
    return row


def stays_broken(bench: Bench, what: str) -> Row:
    """Losses, gradients or weights that stay broken stop the run, which keeps its last good checkpoint."""
    row = Row(f"a {what} that is not finite from one step on", 1)
    command = bench.world.recipe(f"broken-{what}")
    ended = fit(command, broken("joint", range(8, 100), what))  # the checkpoint before is of step 8
    row.demand_line(ended, "not finite")
    row.demand(what == "weight" or "train-" in ended.error, f"no utterance is named: {ended.error}")
    row.demand(finite(command, read_checkpoint), "a checkpoint holds weights that are not finite")
    row.demand_recovery(command, bench.whole)
    row.ended = "exit 2, a line that names utterances or weights; mended, the same command finished: same bits"
    return row
