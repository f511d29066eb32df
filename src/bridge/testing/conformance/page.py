"""The page docs/conformance.md from JSON reports: ``python -m bridge.testing.conformance.page REPORT... > PAGE``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from bridge.testing.conformance import catalogue
from bridge.testing.conformance.results import Outcome, Report, Result, report_of
from bridge.testing.conformance.runtimeclass import runtime_class

_MARKS = {Outcome.PASSED: "✓", Outcome.FAILED: "**fails**", Outcome.LIMIT: "limit", Outcome.UNSUPPORTED: "n/s", Outcome.IMPOSSIBLE: "–"}
_MIB = 1 << 20

_GUIDE = """\
# Conformance

Does a runtime do what a kubelet relies on? `cri-bridge conform HANDLER` tries it: it starts a private server with that handler
alone (own directories, own CNI network, images made on the spot of the host's static busybox), acts as the kubelet would, kills
server and monitor while containers run, and looks after each spec whether anything was left behind. Nothing of the host's
configuration is changed and nothing stays. It needs root, and pytest: `pip install 'cri-bridge[conform]'`.

```sh
sudo cri-bridge conform runc                                  # everything, some 3 minutes; exit code 1 when it does not conform
sudo cri-bridge conform runc --quick                          # the most telling third of it, half a minute
sudo cri-bridge conform mine --config mine.toml               # a handler of that configuration
sudo cri-bridge conform mine --only execs --skip 'exec-t*'    # specs or groups, by name or glob
sudo cri-bridge conform kata --slowness 10                    # every deadline ten times as long
sudo cri-bridge conform runc --report junit -o report.xml     # also: json
sudo cri-bridge conform runc --socket /run/cri-bridge/cri-bridge.sock   # a server that runs already, of the same --config: it is not killed
cri-bridge conform --list                                     # the specs, each with its purpose and its source
```

How a spec ends:

| in the report | in the table | means |
| --- | --- | --- |
| passed | ✓ | the handler does as it must |
| failed | **fails** | it does not, or it left something behind |
| limit | limit | it fails as the plugin's list of known limits says; one that passes all the same is a failure |
| unsupported | n/s | the probe found that the runtime can't (the report has its evidence), and it can't; if it can, that is a failure |
| impossible | – | it can't be tried on this host or server, for the reason in the report |
| | (nothing) | it was not run |

The report ends with what a pod costs, as a RuntimeClass that is ready to be applied: start time, and `overhead.podFixed` from the
memory (PSS) of every process that exists because of a pod but its workload, and from their CPU time while the pod idles.

## In a plugin's own tests

```python
# test_conformance.py
import pytest

from bridge.testing.conformance.suite import test_spec
from bridge.testing.conformance.target import Target, target

pytest_plugins = ["bridge.testing.conformance.plugin"]


@pytest.fixture(scope="session")
def conformance_target() -> Target:
    return target("mine", plugin="mine", options={"path": "/usr/bin/mine"})
```

`pytest --conform-quick` runs the short run, `--conform-only` and `--conform-skip` choose. A plugin announces its known limits, and
the directories outside the server's own that it uses, with its runtime:
`RuntimePlugin(..., conformance_limits=limits, own_paths=[Path("/run/mine")])`, where `limits(options, version)` returns spec → reason;
so a limit can depend on the version. For a handler without a plugin of its own they can be given in a file (`--limits`).
"""


def page(reports: Sequence[Report]) -> str:
    """The page, in Markdown."""
    return "\n".join([_GUIDE, *_results(reports)]) + "\n"


def _results(reports: Sequence[Report]) -> Iterator[str]:
    yield "## Results"
    yield ""
    yield f"Made by `scripts/conformance` on {reports[0].host}; the versions are in the first table."
    yield ""
    yield "| handler | plugin | runtime | specs | start of a pod (p50) | memory a pod | |"
    yield "| --- | --- | --- | --- | ---: | ---: | --- |"
    for report in reports:
        yield _summary(report)
    yield ""
    yield f"| spec | {' | '.join(report.handler for report in reports)} |"
    yield f"| --- |{' :-: |' * len(reports)}"
    outcomes = [{each.spec: each for each in report.results} for report in reports]
    for spec in catalogue.every():
        yield f"| `{spec.name}` | {' | '.join(_cell(found.get(spec.name)) for found in outcomes)} |"
    for report in reports:
        yield from _details(report)


def _summary(report: Report) -> str:
    counts = ", ".join(f"{report.counts[kind]} {kind}" for kind in Outcome if report.counts.get(kind))
    start = f"{report.costs.start_ms:.0f} ms" if report.costs.start_ms is not None else ""
    memory = f"{report.costs.memory_bytes / _MIB:.1f} MiB" if report.costs.memory_bytes is not None else ""
    verdict = "conforms" if report.passed else "**does not conform**"
    return f"| {report.handler} | {report.plugin} | {_cut(report.version)} | {counts} | {start} | {memory} | {verdict} |"


def _cell(result: Result | None) -> str:
    return "" if result is None else _MARKS[result.outcome]


def _details(report: Report) -> Iterator[str]:
    yield from ("", f"### {report.handler}", "")
    told = [each for each in report.results if each.outcome is not Outcome.PASSED]
    for result in told:
        yield f"- {_MARKS[result.outcome]} `{result.spec}`: {_cut(result.reason)}"
    for line in report.left_behind:
        yield f"- **left behind**: {_cut(line)}"
    yield from ("",) if told or report.left_behind else ()
    missing = "; ".join(f"{each.ability} ({_cut(each.detail)})" for each in report.missing)
    yield f"Declared unsupported: {missing or 'nothing'}."
    manifest = runtime_class(report.handler, report.costs)
    if manifest:
        yield from ("", "```yaml", *manifest.splitlines(), "```")


def _cut(text: str) -> str:
    """The first line, fit for a cell."""
    return text.split("\n")[0].replace("|", "\\|").strip()


def main(paths: Sequence[str]) -> int:
    """Print the page of the reports in ``paths``."""
    print(page([report_of(json.loads(Path(path).read_text("utf-8"))) for path in paths]), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
