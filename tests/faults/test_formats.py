"""A clip of each format, whole and cut: `python -m tests.faults.formats` does it to a thousand."""

import pytest

from tests.faults.formats import FORMATS, Row, run

ENDS_ANYWHERE = ("WAV from a pipe", "webm of a browser")  # nothing in them says where they end


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Row]:
    return run(len(FORMATS), None, 0, tmp_path_factory.mktemp("formats"))


@pytest.mark.parametrize("name", FORMATS)
def test_whole_clips_are_read_and_cut_ones_refused_alike_under_other_work(name: str, rows: dict[str, Row]) -> None:
    row = rows[name]
    assert row.clips and row.read["whole"] == row.clips and not row.faults
    if name not in ENDS_ANYWHERE:
        assert row.refused["cut"] == 3 * row.clips
