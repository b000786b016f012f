"""`python -m sottovoce`: the command `sottovoce`."""

if __name__ == "__main__":
    import sys

    from sottovoce.cli.main import main

    sys.exit(main())
