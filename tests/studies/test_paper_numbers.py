"""The paper's tables: transcribed exactly, and every place where they do not add up is listed."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from decimal import Decimal

import pytest
from pydantic import ValidationError

from undistill.data import DATASETS
from undistill.errors import UnknownNameError
from undistill.models import MODELS
from undistill.studies.paper import PaperCell, PaperTable, load_paper

PAPER = load_paper()


def cells() -> Iterator[tuple[PaperTable, str, str, PaperCell]]:
    for table in PAPER.values():
        for row in table.rows:
            for column in table.columns:
                yield table, row, column, table.cell(row, column)


def hand_difference(table: PaperTable, row: str, column: str) -> Decimal | None:
    """Value minus its baseline in decimal arithmetic, with the baseline looked up here and not by ``reference``."""
    info = table.rows[row]
    if info.kind == "baseline":
        return None
    if table.columns[column].measure == "kd" and column != "self":
        anchor = table.cell("baseline", column)
    elif info.kind == "nasty" or column == "self":
        normal = next(n for n, r in table.rows.items() if (r.teacher, r.kind) == (info.teacher, "normal"))
        anchor = table.cell(normal, "teacher" if column == "self" else column)
    else:
        return None
    return Decimal(str(table.cell(row, column).value)) - Decimal(str(anchor.value))


def test_every_difference_is_value_minus_its_baseline_but_for_the_listed_errata() -> None:
    wrong = {}
    for table, row, column, cell in cells():
        expected = hand_difference(table, row, column)
        assert (cell.difference is None) == (expected is None), (table.id, row, column)
        if expected is not None and Decimal(str(cell.difference)) != expected:
            wrong[table.id, row, column] = (cell.difference, float(expected))
    listed = {
        (table.id, e.row, e.column): (e.printed, e.derived)
        for table in PAPER.values()
        for e in table.errata
        if e.kind == "difference"
    }
    assert listed == wrong
    assert set(listed) == {("table2", "resnet50-normal", "self"), ("table6", "resnet34-nasty", "cifar100-teacher")}


def test_reference_is_what_the_difference_is_measured_against() -> None:
    for table, row, column, cell in cells():
        reference, expected = table.reference(row, column), hand_difference(table, row, column)
        assert (reference is None) == (expected is None), (table.id, row, column)
        if reference is not None:
            assert Decimal(str(cell.value)) - Decimal(str(reference)) == expected
    assert PAPER["table1"].reference("resnet18-nasty", "cnn") == 86.64
    assert PAPER["table3"].reference("resnext29-nasty", "self") == 62.81
    assert PAPER["table6"].reference("resnet34-nasty", "cifar10-dafl") == 92.49


def test_label_errata_are_the_networks_spelled_in_two_ways() -> None:
    places: dict[str, set[str]] = defaultdict(set)  # spelling -> tables
    for table in PAPER.values():
        for printed in [*table.rows.values(), *table.columns.values()]:
            for spelling in re.findall(r"ResNe[a-zA-Z]+-?\d+", printed.label):
                places[spelling].add(table.id)
    second = {
        (table, spelling, hyphenated)
        for spelling, tables in places.items()
        if (hyphenated := re.sub(r"(?<=[a-zA-Z])(?=\d)", "-", spelling)) != spelling and hyphenated in places
        for table in tables
    }
    errata = [(table.id, e) for table in PAPER.values() for e in table.errata if e.kind == "label"]
    assert sorted((table, e.printed, e.derived) for table, e in errata) == sorted(second)
    for table, e in errata:
        if e.row is not None:
            assert str(e.printed) in PAPER[table].rows[e.row].label
        if e.column is not None:
            assert str(e.printed) in PAPER[table].columns[e.column].label


def test_the_weak_adversary_is_the_worst_for_the_student_named_in_the_claim() -> None:
    [(table, claim)] = [(t, e) for t in PAPER.values() for e in t.errata if e.kind == "claim"]
    assert table.id == "table4"
    assert (claim.row, claim.column) == ("resnet18-nasty-cnn", "cnn")
    values = {row: table.cell(row, claim.column).value for row in table.rows}
    assert min(values, key=lambda row: values[row] or 0.0) == claim.row


@pytest.mark.parametrize(
    ("table", "row", "column", "printed"),
    [
        ("table1", "baseline", "teacher", "-"),
        ("table1", "baseline", "preresnet20", "92.28"),
        ("table1", "resnet18-nasty", "teacher", "94.56 (-0.57)"),
        ("table1", "resnet18-nasty", "preresnet32", "89.69 (-3.35)"),
        ("table2", "resnet18-nasty", "teacher", "77.42 (-0.02)"),
        ("table2", "resnet50-normal", "self", "80.02 (+1.96)"),
        ("table2", "resnext29-nasty", "mobilenetv2", "1.55 (-67.57)"),
        ("table2", "resnext29-nasty", "resnet18", "68.52 (-8.92)"),
        ("table3", "baseline", "shufflenetv2", "55.74"),
        ("table3", "resnet18-nasty", "mobilenetv2", "1.82 (-49.90)"),
        ("table3", "resnext29-nasty", "self", "59.54 (-3.27)"),
        ("table4", "resnet18-nasty-cnn", "cnn", "77.12 (-9.52)"),
        ("table4", "resnet18-nasty-resnext29", "teacher", "94.55 (-0.58)"),
        ("table5", "resnet18-normal", "cifar10-resnet50", "94.45 (-0.53)"),
        ("table5", "resnet18-nasty", "cifar100-resnext29", "78.88 (-2.97)"),
        ("table6", "resnet34-normal", "cifar10-teacher", "95.42"),
        ("table6", "resnet34-nasty", "cifar10-dafl", "86.15 (-6.34)"),
        ("table6", "resnet34-nasty", "cifar100-teacher", "76.12 (-0.79)"),
    ],
)
def test_cells_as_printed(table: str, row: str, column: str, printed: str) -> None:
    cell = PAPER[table].cell(row, column)
    value = "-" if cell.value is None else f"{cell.value:.2f}"
    assert value + ("" if cell.difference is None else f" ({cell.difference:+.2f})") == printed


def test_rows_columns_and_datasets() -> None:
    shape = {name: (len(table.rows), len(table.columns), table.datasets) for name, table in PAPER.items()}
    assert shape == {
        "table1": (3, 5, ("cifar10",)),
        "table2": (7, 5, ("cifar100",)),
        "table3": (7, 5, ("tiny_imagenet",)),
        "table4": (5, 5, ("cifar10",)),
        "table5": (3, 4, ("cifar10", "cifar100")),
        "table6": (2, 4, ("cifar10", "cifar100")),
    }
    # the dashes: no teacher in the baseline rows, and no student that is the teacher itself
    assert [(t.id, r, c) for t, r, c, cell in cells() if cell.value is None] == [
        ("table1", "baseline", "teacher"),
        ("table2", "baseline", "teacher"),
        ("table2", "baseline", "self"),
        ("table3", "baseline", "teacher"),
        ("table3", "baseline", "self"),
        ("table4", "baseline", "teacher"),
    ]


def test_a_quantity_printed_twice_has_one_value() -> None:
    values: dict[tuple[str | None, ...], list[float]] = defaultdict(list)
    for table, row, column, cell in cells():
        info, head = table.rows[row], table.columns[column]
        student = table.student(row, column)
        # a network trained alone is the same thing as a student baseline and as a normal teacher
        alone = info.kind == "baseline" or (info.kind == "normal" and head.measure == "teacher")
        trained = student or info.teacher
        who = (trained,) if alone else (info.teacher, info.kind, info.adversary, head.measure, student)
        if cell.value is not None:
            values[head.dataset, *who].append(cell.value)
    assert {key: found for key, found in values.items() if len(set(found)) > 1} == {}
    assert len(values["cifar10", "resnet18"]) == 4  # Tables 1 and 4, as baseline and as teacher
    assert len(values["cifar10", "resnet18", "nasty", "resnet18", "kd", "cnn"]) == 2  # Tables 1 and 4
    assert len(values["cifar100", "resnext29"]) == 2  # Tables 2 and 5


def test_every_name_is_registered() -> None:
    for table, row, column, _ in cells():
        info, head = table.rows[row], table.columns[column]
        assert {info.teacher, info.adversary, table.student(row, column)} - {None} <= set(MODELS.names())
        assert head.dataset in DATASETS
        assert (info.teacher is None) == (info.kind == "baseline")
        assert (info.adversary is None) == (info.kind != "nasty")
        assert row == "-".join(
            filter(None, [info.teacher, info.kind, info.adversary if info.adversary != info.teacher else None])
        )


def test_labels_name_the_models() -> None:
    paper_names = {"ResNetC": "preresnet", "ResNet": "resnet", "ResNeXt": "resnext"}
    for table in PAPER.values():
        for row in table.rows.values():
            for name, depth in re.findall(r"^(?:KD from )?(ResNe[a-zA-Z]+)-?(\d+)", row.label):
                assert row.teacher == paper_names[name] + depth
        for column in table.columns.values():
            for name, depth in re.findall(r"^(ResNe[a-zA-Z]+)-?(\d+)$", column.label):
                assert column.student == paper_names[name] + depth
    assert [PAPER["table4"].rows[r].adversary for r in list(PAPER["table4"].rows)[2:]] == [
        "resnet18",
        "cnn",
        "resnext29",
    ]


def test_erratum_of_a_cell() -> None:
    erratum = PAPER["table6"].erratum("resnet34-nasty", "cifar100-teacher")
    assert erratum is not None
    assert erratum.derived == -0.85
    assert PAPER["table6"].erratum("resnet34-nasty", "cifar10-teacher") is None
    assert PAPER["table4"].erratum("resnet18-nasty-cnn", "cnn") is None  # a claim, not a number


def test_self_student_is_the_teacher_of_the_row() -> None:
    assert PAPER["table2"].student("resnext29-nasty", "self") == "resnext29"
    assert PAPER["table2"].student("baseline", "self") is None
    assert PAPER["table6"].student("resnet34-nasty", "cifar10-dafl") is None


def test_unknown_row_and_column_are_named() -> None:
    with pytest.raises(UnknownNameError, match=r"row of table1 'resnet18-nastie'.*did you mean 'resnet18-nasty'"):
        PAPER["table1"].cell("resnet18-nastie", "cnn")
    with pytest.raises(UnknownNameError, match=r"column of table2 'mobilenet'.*did you mean 'mobilenetv2'"):
        PAPER["table2"].reference("baseline", "mobilenet")


def test_tables_cannot_be_changed_and_must_be_rectangular() -> None:
    with pytest.raises(ValidationError):
        PAPER["table1"].cell("baseline", "cnn").value = 1.0
    with pytest.raises(TypeError):
        PAPER["table7"] = PAPER["table1"]  # type: ignore[index]
    table = PAPER["table1"].model_dump()
    table["rows"]["baseline"]["cells"] = table["rows"]["baseline"]["cells"][:-1]
    with pytest.raises(ValidationError, match="expected 5 cells in each row of table1"):
        PaperTable(**table)
