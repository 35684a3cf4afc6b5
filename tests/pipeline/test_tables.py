"""CSV tables, as spreadsheets and the pipeline itself read them back."""

from __future__ import annotations

from pipeline.tables import csv_text, read_numbers


def test_no_cell_is_a_formula() -> None:
    names = ["=HYPERLINK(0)", "+1", "-1", "@SUM(A1)", "\t=1", "plain", "", "a=b"]
    rows = csv_text(["config", "loss"], [{"config": name, "loss": -0.5} for name in names]).splitlines()
    assert rows[0] == "config,loss"
    assert [row.rpartition(",")[0].strip('"')[:1] for row in rows[1:6]] == ["'"] * 5
    assert rows[6:] == ["plain,-0.5", ",-0.5", "a=b,-0.5"]


def test_a_table_of_numbers_survives_a_round_trip() -> None:
    rows = [{"epoch": 1, "loss": 2.302585, "validation_loss": None}, {"epoch": 2, "loss": 12.0, "validation_loss": 1.5}]
    text = csv_text(["epoch", "loss", "validation_loss"], rows)
    assert text == "epoch,loss,validation_loss\n1,2.30259,\n2,12,1.5\n"
    read = read_numbers(text, whole=["epoch"])
    assert read == [{**rows[0], "loss": 2.30259}, rows[1]]
    assert [type(value) for value in read[1].values()] == [int, float, float]
