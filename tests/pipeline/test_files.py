"""Reading many small files for one question."""

from __future__ import annotations

from pathlib import Path

from pipeline.files import each_read_once, read_json


def test_a_file_is_read_once_in_a_block_and_anew_after_it(tmp_path: Path) -> None:
    there, missing = tmp_path / "there.json", tmp_path / "missing.json"
    there.write_text("1")
    with each_read_once():
        assert (read_json(there), read_json(missing)) == (1, None)
        there.write_text("2")
        missing.write_text("3")
        assert (read_json(there), read_json(missing)) == (1, None)
    assert (read_json(there), read_json(missing)) == (2, 3)
