"""`python -m sottovoce.demo pretrain-llm ...`: train the demo's frozen backbones anew."""

import argparse
from importlib import import_module
from pathlib import Path

PARTS = ("pretrain-encoder", "pretrain-conformer", "pretrain-llm", "pretrain-llm-deep")


def main() -> None:
    parser = argparse.ArgumentParser("python -m sottovoce.demo", description=__doc__)
    parser.add_argument("parts", nargs="+", choices=PARTS, help="what to train; pretrain-llm-deep grows from the llm")
    parser.add_argument("--out", type=Path, default=Path("demo/backbones"), help="folder of the backbones")
    arguments = parser.parse_args()
    for part in arguments.parts:
        print(import_module(f"sottovoce.demo.{part.replace('-', '_')}").pretrain(arguments.out))


if __name__ == "__main__":
    main()
