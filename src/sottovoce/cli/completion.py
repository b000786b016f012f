"""Completion of commands, options and files in a shell, by argcomplete."""

import argcomplete


def print_completion(shell: str) -> None:
    """Print what a shell is to read at its start."""
    print(argcomplete.shellcode(["sottovoce"], shell=shell))
