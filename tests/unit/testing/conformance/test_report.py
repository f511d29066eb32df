"""Reports of a run: text for people, JSON that comes back whole, JUnit that parsers read, the RuntimeClass."""

import json
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
import yaml

from bridge.testing.conformance.report import as_json, as_junit, as_text, line
from bridge.testing.conformance.results import Costs, Declared, Outcome, Report, Result, report_of
from bridge.testing.conformance.runtimeclass import runtime_class

MIB = 1 << 20


def result(name: str, outcome: Outcome = Outcome.PASSED, reason: str = "", *notes: str) -> Result:
    return Result(name, "group", f"What {name} is for", "CRI", outcome, 1.5, reason, notes)


REPORT = Report(
    handler="sentry",
    plugin="gvisor",
    version="release-1",
    path="/usr/bin/runsc",
    server="cri-bridge 0.1",
    host="Linux 6",
    declared=(Declared("exec", "supported", "tried"), Declared("pause", "unsupported", "its features say so")),
    results=(
        result("good", Outcome.PASSED, "", "seen 3 of it"),
        result("bad", Outcome.FAILED, "it is 4, not 3\nand more"),
        result("known", Outcome.LIMIT, "the sentry has none (seen: no)"),
        result("absent", Outcome.UNSUPPORTED, "pause: its features say so"),
        result("elsewhere", Outcome.IMPOSSIBLE, "no CNI plugins here"),
    ),
    costs=Costs(start_ms=51.2, start_p95_ms=60, run_ms=20, pods=12, memory_bytes=3 * MIB + 1, cpu_millicores=1.2),
)


def test_the_text_has_each_outcome_under_its_heading() -> None:
    text = as_text(REPORT)
    headings = ["Failed:", "Known limits", "Not supported by the runtime", "Could not be tried", "Declared unsupported", "Seen:"]
    places = [text.index(each) for each in headings]
    assert places == sorted(places)
    for words in ("it is 4, not 3", "the sentry has none", "pause: its features say so", "no CNI plugins here", "good: seen 3 of it"):
        assert words in text
    assert "DOES NOT CONFORM: 5 specs in 8 s: 1 passed, 1 failed, 1 limit, 1 unsupported, 1 impossible" in text
    assert "good" in line(REPORT.results[0])


@pytest.mark.parametrize(
    ("changes", "passed"),
    [
        ({}, False),
        ({"results": REPORT.results[2:]}, True),
        ({"results": REPORT.results[2:], "left_behind": ("process: 1 sleep",)}, False),
        ({"results": REPORT.results[2:], "fault": "the server did not start"}, False),
    ],
)
def test_the_verdict(changes: dict[str, object], passed: bool) -> None:
    report = replace(REPORT, **changes)  # type: ignore[arg-type]
    assert report.passed is passed
    assert ("DOES NOT CONFORM" in as_text(report)) is not passed
    for words in ("process: 1 sleep", "the server did not start"):
        assert (words in as_text(report)) is (words in str(changes))


def test_json_comes_back_whole() -> None:
    data = json.loads(as_json(REPORT))
    assert report_of(data) == REPORT
    assert data["passed"] is False
    assert data["counts"]["failed"] == 1


def test_junit_tells_failures_and_skips() -> None:
    report = replace(REPORT, left_behind=("mount: x\x00y",))
    top = ET.fromstring(as_junit(report))
    assert (top.attrib["tests"], top.attrib["failures"], top.attrib["skipped"]) == ("6", "2", "3")
    cases = {case.attrib["name"]: case for case in top.iter("testcase")}
    failure = cases["bad"].find("failure")
    assert failure is not None
    assert failure.attrib["message"] == "it is 4, not 3"
    assert "and more" in (failure.text or "")
    skipped = cases["known"].find("skipped")
    assert skipped is not None
    assert skipped.attrib["message"].startswith("limit: the sentry has none")
    assert cases["good"].find("failure") is None
    assert cases["good"].findtext("system-out") == "seen 3 of it"
    assert cases["good"].attrib["classname"] == "sentry.group"


def test_the_runtime_class_is_ready_to_be_applied() -> None:
    manifest = yaml.safe_load(runtime_class("sentry", REPORT.costs))
    assert manifest == {
        "apiVersion": "node.k8s.io/v1",
        "kind": "RuntimeClass",
        "metadata": {"name": "sentry"},
        "handler": "sentry",
        "overhead": {"podFixed": {"memory": "4Mi", "cpu": "2m"}},
    }
    assert "51 ms" in runtime_class("sentry", REPORT.costs)


def test_what_was_not_measured_is_not_promised() -> None:
    assert runtime_class("x", Costs(start_ms=5)) == ""
    small = yaml.safe_load(runtime_class("x", Costs(memory_bytes=1, cpu_millicores=0.2)))
    assert small["overhead"] == {"podFixed": {"memory": "1Mi"}}
