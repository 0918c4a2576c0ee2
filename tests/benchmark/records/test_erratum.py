"""The erratum of a results folder."""

from pathlib import Path

from benchmark.records import erratum


def test_without_one_there_is_nothing(tmp_path: Path) -> None:
    assert erratum.read(tmp_path) == ""
    assert erratum.lines(tmp_path) == []


def test_it_is_one_paragraph_that_does_nothing(tmp_path: Path) -> None:
    erratum.write("Rows were\nnot mixed; <b>see</b> [docs](x).\n", tmp_path)
    assert erratum.lines(tmp_path) == ["**Erratum.** Rows were not mixed; \\<b>see\\</b> \\[docs](x).", ""]
    assert erratum.lines(tmp_path, "a/b")[0].startswith("**Erratum of `a/b`.** Rows were")


def test_an_empty_text_removes_it(tmp_path: Path) -> None:
    erratum.write("wrong", tmp_path)
    erratum.write(" \n", tmp_path)
    erratum.write("", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_several_stay_apart(tmp_path: Path) -> None:
    erratum.write_all(["Rows were\nnot mixed.", " ", "One seed."], tmp_path)
    assert erratum.read_all(tmp_path) == ["Rows were not mixed.", "One seed."]
    assert erratum.lines(tmp_path) == ["**Erratum.** Rows were not mixed. One seed.", ""]
    erratum.write_all([], tmp_path)
    assert list(tmp_path.iterdir()) == []
