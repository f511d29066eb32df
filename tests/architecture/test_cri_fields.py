"""docs/cri-fields.md has a row for each field and enum member that these messages can carry, and names tests that exist."""

from __future__ import annotations

import ast
import functools
import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import betterproto2
import pytest

from bridge._proto.message_pool import default_message_pool
from bridge._proto.runtime import v1 as pb
from bridge.config import Config
from bridge.wire.wiretypes import fields_of

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "cri-fields.md"
REQUESTS = (
    pb.RunPodSandboxRequest,
    pb.CreateContainerRequest,
    pb.UpdateContainerResourcesRequest,
    pb.UpdatePodSandboxResourcesRequest,
    pb.UpdateRuntimeConfigRequest,
    pb.CheckpointContainerRequest,
    pb.CheckpointPodRequest,
    pb.RestorePodRequest,
    pb.ExecRequest,
    pb.AttachRequest,
    pb.PortForwardRequest,
)
ANSWERS = (pb.ContainerEventResponse, pb.ContainerEventType, pb.PodSandboxStatusResponse)
"""With their own fields only: what is in those, the requests have asked for."""
STATISTICS = (pb.ContainerStatsFilter, pb.PodSandboxStatsFilter, pb.ContainerStats, pb.PodSandboxStats)
METRICS = (pb.PodSandboxMetrics, pb.MetricDescriptor)
WINDOWS = "Windows messages"
ENUM_NAMES = {pb.SecurityProfileProfileType: "SecurityProfile.ProfileType"}


class Row(NamedTuple):
    """One row of a table: what it is about, what we do, and which tests say so."""

    section: str
    names: list[str]
    behaviour: str
    tests: list[str]


def cri_name(cls: type[Any]) -> str:
    """What the CRI calls it; generated classes are spelled a little differently (DnsConfig)."""
    url = default_message_pool.type_to_url.get(cls, "")
    return url.rpartition(".")[2] or ENUM_NAMES.get(cls, cls.__name__)


def wanted() -> dict[str, set[str]]:
    """Fields by message and members by enum, of all that the requests can carry; Windows messages only by name."""
    found: dict[str, set[str]] = {WINDOWS: set()}
    seen: set[type[Any]] = set()
    left: list[type[Any]] = [*REQUESTS, *ANSWERS, *STATISTICS, *METRICS]
    while left:
        cls = left.pop()
        if cls in seen:
            continue
        seen.add(cls)
        name, fields = cri_name(cls), [] if issubclass(cls, betterproto2.Enum) else fields_of(cls)
        if cls not in ANSWERS:
            left += [field.value.cls for field in fields if field.value.cls is not None]
        if name.startswith("Windows"):
            found[WINDOWS].add(name)
        elif issubclass(cls, betterproto2.Enum):
            found[name] = {str(member.name) for member in cls}
        else:
            found[name] = {field.name for field in fields}
    return found


def rows(text: str) -> list[Row]:
    """Every row of every table, by the section above it."""
    section, found = "", []
    for line in text.splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ").strip()
        elif line.startswith("| `"):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            assert len(cells) == 3, f"{section}: a row has three cells: {line}"
            found.append(Row(section, re.findall(r"`([^`]+)`", cells[0]), cells[1], re.findall(r"`([^`]+::[^`]+)`", cells[2])))
    return found


def problems(text: str) -> list[str]:
    """What is wrong with a page, in words."""
    expected, found, told = wanted(), rows(text), []
    for section in sorted({row.section for row in found} | expected.keys()):
        names = [name for row in found if row.section == section for name in row.names]
        known = expected.get(section, set())
        told += [f"{section}.{name} has no row" for name in sorted(known) if not any(fnmatchcase(name, each) for each in names)]
        told += [f"{section}: row {each!r} is no field" for each in names if not any(fnmatchcase(name, each) for name in known)]
        told += [f"{section}: two rows for {each!r}" for each in {name for name in names if names.count(name) > 1}]
    for row in found:
        where = f"{row.section}.{row.names[0]}"
        told += [] if row.behaviour else [f"{where} does not say what we do"]
        told += [] if row.tests else [f"{where} names no test"]
        told += [f"{where}: there is no test {test}" for test in row.tests if not exists(test)]
    return told


def exists(test: str) -> bool:
    """Whether ``file::function`` below tests/ is there."""
    path, _, name = test.partition("::")
    return name in functions(TESTS / path)


@functools.cache
def functions(path: Path) -> frozenset[str]:
    """The test functions of a file; none when it is not there."""
    if not path.is_file():
        return frozenset()
    tree = ast.parse(path.read_text("utf-8"))
    return frozenset(
        node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    )


def test_every_field_has_its_row_and_every_row_its_field_and_tests() -> None:
    assert problems(PAGE.read_text("utf-8")) == []


def test_options_that_the_page_names_exist() -> None:
    sections = Config().model_dump()
    named = re.findall(rf"`({'|'.join(sections)})\.(\w+)", PAGE.read_text("utf-8"))
    assert len(named) > 5
    assert [f"{section}.{key}" for section, key in named if key not in sections[section]] == []


TEST = "`unit/x.py::test_terminal`"


@pytest.mark.parametrize(
    ("name", "instead", "expected"),
    [
        (
            "stdin_once",
            f"| `teletype` | A terminal. | {TEST} |",
            ["ContainerConfig.stdin_once has no row", "ContainerConfig: row 'teletype' is no field"],
        ),
        ("stdin_once", "", ["ContainerConfig.stdin_once has no row"]),
        ("stdin_once", f"| `stdin_once`, `stdin_once` | A terminal. | {TEST} |", ["ContainerConfig: two rows for 'stdin_once'"]),
        (
            "stdin_once",
            "| `stdin_once` | A terminal. | `unit/x.py::test_x` |",
            ["ContainerConfig.stdin_once: there is no test unit/x.py::test_x"],
        ),
        ("stdin_once", f"| `stdin_once` |  | {TEST} |", ["ContainerConfig.stdin_once does not say what we do"]),
        ("stdin_once", "| `stdin_once` | A terminal. | |", ["ContainerConfig.stdin_once names no test"]),
        ("UDP", "", ["Protocol.UDP has no row"]),
        ("SIGTERM", f"| `SIGT*RM` | A signal. | {TEST} |", []),
        ("WindowsContainerConfig", "", ["Windows messages.WindowsContainerConfig has no row"]),
    ],
)
def test_what_is_missing_is_told(name: str, instead: str, expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.functions", lambda path: {"test_terminal"})
    page = ""
    for section, names in wanted().items():
        page += f"## {section}\n" + "".join(f"| `{each}` | What it says. | {TEST} |\n" for each in sorted(names))
    assert problems(page) == []
    row = f"| `{name}` | What it says. | {TEST} |"
    assert row in page
    assert problems(page.replace(row, instead)) == expected
