"""A report as text for an operator, as JSON and as JUnit XML. Pure functions."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence

from bridge.testing.conformance.results import Outcome, Report, Result
from bridge.testing.conformance.runtimeclass import runtime_class

_HEADINGS = (
    (Outcome.FAILED, "Failed"),
    (Outcome.LIMIT, "Known limits of the runtime"),
    (Outcome.UNSUPPORTED, "Not supported by the runtime, with the probe's evidence"),
    (Outcome.IMPOSSIBLE, "Could not be tried here"),
)
_MARKS = {
    Outcome.PASSED: "ok  ",
    Outcome.FAILED: "FAIL",
    Outcome.LIMIT: "lim ",
    Outcome.UNSUPPORTED: "n/s ",
    Outcome.IMPOSSIBLE: "n/a ",
}
_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def line(result: Result) -> str:
    """One spec in one line."""
    return f"{_MARKS[result.outcome]} {result.group:<12} {result.spec:<34} {result.seconds:6.1f} s"


def as_text(report: Report) -> str:
    """What an operator reads: the verdict, what is not well and why, what was measured, the RuntimeClass."""
    return "\n".join(_text(report)) + "\n"


def _text(report: Report) -> Iterator[str]:
    yield f"Handler {report.handler}: plugin {report.plugin}, {report.version} ({report.path}), {report.server}, {report.host}"
    for outcome, heading in _HEADINGS:
        found = [each for each in report.results if each.outcome is outcome]
        if found:
            yield from ("", f"{heading}:")
        for result in found:
            yield f"  {result.spec}: {result.purpose}"
            yield f"    source: {result.source}"
            yield from _indented(result.reason)
    if report.left_behind:
        yield from ("", "Left behind when server and monitor had ended:", *(f"  {each}" for each in report.left_behind))
    if report.missing:
        yield from ("", "Declared unsupported by the handler:")
        yield from (f"  {each.ability}: {each.detail or 'no evidence given'}" for each in report.missing)
    notes = [(each.spec, note) for each in report.results for note in each.notes]
    if notes:
        yield from ("", "Seen:", *(f"  {spec}: {note}" for spec, note in notes))
    yield from _costs(report)
    if report.fault:
        yield from ("", f"The run broke off: {report.fault}")
    counts = ", ".join(f"{report.counts[kind]} {kind}" for kind in Outcome if report.counts.get(kind))
    seconds = sum(each.seconds for each in report.results)
    verdict = "CONFORMS" if report.passed else "DOES NOT CONFORM"
    yield from ("", f"{verdict}: {len(report.results)} specs in {seconds:.0f} s: {counts or 'none run'}")


def _indented(reason: str) -> Iterator[str]:
    for each in reason.splitlines():
        yield f"    {each}"


def _costs(report: Report) -> Iterator[str]:
    manifest = runtime_class(report.handler, report.costs)
    if manifest:
        yield from ("", "RuntimeClass, as measured on this machine:", "", *(f"  {each}" for each in manifest.splitlines()))


def as_json(report: Report) -> str:
    """Everything that is known, as JSON."""
    return json.dumps(report.as_json(), indent=2, ensure_ascii=False) + "\n"


def as_junit(report: Report) -> str:
    """JUnit XML, as CI systems read it: a failure for each spec that failed, a skip with the reason for each that could not pass."""
    results = [*report.results, *_extra(report)]
    failures = sum(each.outcome is Outcome.FAILED for each in results)
    skipped = sum(each.outcome not in (Outcome.PASSED, Outcome.FAILED) for each in results)
    top = ET.Element(
        "testsuite",
        name=f"cri-bridge conform {report.handler}",
        tests=str(len(results)),
        failures=str(failures),
        skipped=str(skipped),
        errors="0",
        time=f"{sum(each.seconds for each in results):.3f}",
    )
    properties = ET.SubElement(top, "properties")
    for name in ("handler", "plugin", "version", "path", "server", "host"):
        ET.SubElement(properties, "property", name=name, value=_plain(getattr(report, name)))
    for result in results:
        _case(top, report.handler, result)
    ET.indent(top)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(top, encoding="unicode") + "\n"


def _extra(report: Report) -> Sequence[Result]:
    """What is wrong with the run as a whole, as results."""
    wrong = [("nothing-is-left-behind", "; ".join(report.left_behind)), ("the-run-is-whole", report.fault)]
    return [Result(name, "end", "", "", Outcome.FAILED, 0.0, reason) for name, reason in wrong if reason]


def _case(top: ET.Element, handler: str, result: Result) -> None:
    case = ET.SubElement(top, "testcase", classname=f"{handler}.{result.group}", name=result.spec, time=f"{result.seconds:.3f}")
    first = _plain(result.reason.split("\n")[0])
    if result.outcome is Outcome.FAILED:
        ET.SubElement(case, "failure", message=first).text = _plain(f"{result.purpose}\n{result.source}\n{result.reason}")
    elif result.outcome is not Outcome.PASSED:
        ET.SubElement(case, "skipped", message=f"{result.outcome}: {first}")
    if result.notes:
        ET.SubElement(case, "system-out").text = _plain("\n".join(result.notes))


def _plain(text: str) -> str:
    return _NOT_IN_XML.sub("\ufffd", text)


FORMATS = {"text": as_text, "json": as_json, "junit": as_junit}
