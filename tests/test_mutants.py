"""The list of mutants: each names a text that is once in its file, and tests that exist."""

from tests.mutants import ROOT, read_mutants


def test_every_mutant_changes_the_code_of_today() -> None:
    mutants = read_mutants()  # which refuses stale ones
    assert mutants and all(mutant.old != mutant.new for mutant in mutants)
    assert [test for mutant in mutants for test in mutant.tests if not (ROOT / test.partition("::")[0]).exists()] == []
