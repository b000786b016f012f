"""Completion of commands, options and files in a shell, by argcomplete."""

from argcomplete.shell_integration import shellcode


def print_completion(shell: str) -> None:
    """Print what a shell is to read at its start."""
    print(shellcode(["sottovoce"], shell=shell))
