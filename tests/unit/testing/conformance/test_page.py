"""The page that is made of reports."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bridge.testing.conformance import catalogue
from bridge.testing.conformance.page import main, page
from bridge.testing.conformance.report import as_json
from bridge.testing.conformance.results import Outcome
from tests.unit.testing.conformance.test_report import REPORT, result


def test_a_row_for_each_spec_and_a_column_for_each_handler() -> None:
    first, second = catalogue.every()[:2]
    one = replace(REPORT, handler="one", results=(result(first.name), result(second.name, Outcome.LIMIT, "it | can't\nmore")))
    two = replace(REPORT, handler="two", results=(result(first.name, Outcome.FAILED, "no"),))
    text = page([one, two])
    assert f"| `{first.name}` | ✓ | **fails** |" in text
    assert f"| `{second.name}` | limit |  |" in text
    assert f"- limit `{second.name}`: it \\| can't\n" in text
    assert all(f"| `{each.name}` |" in text for each in catalogue.every())
    assert "| one | gvisor | release-1 | 1 passed, 1 limit | 51 ms | 3.0 MiB | conforms |" in text
    assert "**does not conform**" in text
    assert text.count("kind: RuntimeClass") == 2
    assert "Declared unsupported: pause (its features say so)." in text


def test_the_command_reads_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "one.json").write_text(as_json(REPORT))
    assert main([str(tmp_path / "one.json")]) == 0
    assert capsys.readouterr().out == page([REPORT])
    assert json.loads((tmp_path / "one.json").read_text())["handler"] == "sentry"
