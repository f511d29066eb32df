"""Which annotations a runtime is told. CVE-2024-3154: a pod could run programs on the host through systemd properties."""

from __future__ import annotations

import dataclasses

import pytest

from bridge.core.spec_annotations import RUNTIME_CONTROL, for_container, for_sandbox, permits, withheld
from tests.unit.core.spec_cases import SETTINGS, config, inputs, sandbox


@pytest.mark.parametrize(
    ("pattern", "key", "expected"),
    [
        ("run.oci.", "run.oci.handler", True),
        ("run.oci.*", "run.oci.handler", True),
        ("run.oci.handler", "run.oci.hooks.stdout", False),
        ("run.oci.h*r", "run.oci.handler", True),
        ("run.*", "run.oci.handler", False),
        ("*", "run.oci.handler", False),
        ("*", "example.com/x", True),
        ("example.com/*", "example.com/x", True),
        ("example.com/", "example.com/x", True),
        ("example.com/?", "example.com/xy", False),
        ("EXAMPLE.com/*", "example.com/x", False),
        ("*", "bundle", False),
        ("bundle", "bundle", True),
        ("*", "bundled-by", True),
        ("org.systemd.property.Mem*", "org.systemd.property.MemoryHigh", True),
        ("org.systemd.property.Mem*", "org.systemd.property.ExecStartPre", False),
    ],
)
def test_patterns(pattern: str, key: str, expected: bool) -> None:
    assert permits([pattern], key) is expected


@pytest.mark.parametrize("pattern", ["*", "o*", "org.*", "org.systemd.*", "[o]rg.systemd.property.*", "org.systemd.property"])
def test_cve_2024_3154_systemd_properties_need_a_pattern_of_their_own(pattern: str) -> None:
    key = "org.systemd.property.ExecStartPre"
    assert not permits([pattern], key)
    assert withheld([key, "a"], [pattern]) == [key]
    allowed = dataclasses.replace(SETTINGS, allowed_annotations=(pattern,))
    pod = sandbox()
    pod = dataclasses.replace(pod, config=dataclasses.replace(pod.config, annotations={key: "x"}))
    assert key not in for_container(inputs(sandbox=pod, config=config(annotations={key: "x"})), allowed)
    assert key not in for_sandbox(pod, allowed)


@pytest.mark.parametrize("family", RUNTIME_CONTROL)
def test_no_family_passes_unless_allowed(family: str) -> None:
    annotations = {f"{family}x": "1", "plain": "2"}
    found = for_container(inputs(config=config(annotations=annotations)), SETTINGS)
    assert {key: found[key] for key in annotations if key in found} == {"plain": "2"}
    allowed = dataclasses.replace(SETTINGS, allowed_annotations=(f"{family}*",))
    assert annotations.items() <= for_container(inputs(config=config(annotations=annotations)), allowed).items()


def test_the_pods_allowed_ones_then_the_containers_then_ours() -> None:
    pod = sandbox()
    of_pod = {"example.com/a": "pod", "example.com/b": "pod", "other": "pod", "io.kubernetes.cri.container-name": "evil"}
    pod = dataclasses.replace(pod, config=dataclasses.replace(pod.config, annotations=of_pod))
    own = {"example.com/b": "own", "io.kubernetes.cri-o.ContainerName": "evil", "unasked": "own"}
    allowed = dataclasses.replace(SETTINGS, allowed_annotations=("example.com/", "io.kubernetes.cri*"))
    found = for_container(inputs(sandbox=pod, config=config(annotations=own)), allowed)
    assert {key: found.get(key) for key in ("example.com/a", "example.com/b", "other", "unasked")} == {
        "example.com/a": "pod",
        "example.com/b": "own",
        "other": None,
        "unasked": "own",
    }
    assert found["io.kubernetes.cri.container-name"] == found["io.kubernetes.cri-o.ContainerName"] == "app"
