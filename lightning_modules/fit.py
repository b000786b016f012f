"""`python -m lightning_modules.fit --config conf/quickstart.yaml`: train a recipe; the same as `undertone fit`."""

import sys

from undertone.lightning_modules.cli import main

if __name__ == "__main__":
    sys.exit(main(["fit", *sys.argv[1:]]))
