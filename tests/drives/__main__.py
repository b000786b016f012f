"""`python -m tests.drives`: drive published recipes through their documented commands, and write what was checked."""

import argparse
import os
import sys
import tempfile
from pathlib import Path

os.environ.update({"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"})  # which libraries read when they are imported

from sottovoce.cli.main import silence_libraries
from tests.drives.breaks import BREAKS
from tests.drives.drive import drive, driven, is_driven, turns_red
from tests.drives.plans import PLANS, in_order, unknown
from tests.drives.report import write
from tests.drives.world import ROOT, World


def main() -> int:
    """Print what happens; exit with 1 if a drive is red, or a recipe is driven by none."""
    parser = argparse.ArgumentParser("python -m tests.drives", description=__doc__)
    parser.add_argument("--recipe", nargs="*", metavar="NAME", help="of recipes (conf/…) or plans; all if absent")
    parser.add_argument("--short", action="store_true", help="in one process, fit alone, as CI does")
    parser.add_argument(
        "--fresh", action="store_true", help="an interpreter of its own for every command, which takes longer"
    )
    parser.add_argument("--broken", action="store_true", help="afterwards, with each recipe of breaks.py broken")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the report, such as docs/drives.md")
    parser.add_argument("--folder", type=Path, help="where to work, and what is kept; a temporary folder if absent")
    arguments = parser.parse_args()
    silence_libraries()
    with tempfile.TemporaryDirectory() as scratch:
        start = "here" if arguments.short else "fresh" if arguments.fresh else "forked"
        world = World((arguments.folder or Path(scratch)).resolve(), start=start)
        try:
            if strangers := unknown(world.conf):
                print(f"no plan drives {', '.join(strangers)}", file=sys.stderr)
                return 1
            names = _chosen(arguments.recipe)
            plans = [
                plan
                for plan in in_order(names)
                if plan.name in names or not is_driven(world, plan.name, short=arguments.short)
            ]
            results = [drive(world, plan, short=arguments.short) for plan in plans]
            chosen = [one for one in BREAKS if arguments.broken and one.plan in names]
            known = [found for name in PLANS if (found := driven(world, name))]
            survived = [one for one in chosen if not turns_red(one, world, short=arguments.short)]
        finally:
            world.close()
    if arguments.out:
        write(arguments.out, known)
    red = [result.name for result in results if result.fault]
    print(f"{len(results) - len(red)} of {len(results)} drives green{': red are ' + ', '.join(red) if red else ''}")
    for one in survived:
        print(f"not red: {one.key} of {one.recipe}")
    return bool(red or survived)


def _chosen(wanted: list[str] | None) -> list[str]:
    """Plans by their names, or those of recipes."""
    if not wanted:
        return list(PLANS)
    found = []
    for name in wanted:
        config = name if name.startswith("conf/") else f"conf/{name}.yaml"
        plans = [plan.name for plan in PLANS.values() if plan.name == name or plan.drives(config)]
        if not plans or (name not in PLANS and not (ROOT / config).is_file()):
            raise SystemExit(f"no plan and no recipe is called {name}; plans are {', '.join(PLANS)}")
        found += plans
    return found


if __name__ == "__main__":
    sys.exit(main())
