"""A dry run of a container's spec: what the real thing would get, refused as that would be, and nothing made."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from bridge.core.model import ContainerSecurity, ImageSpec, MountRequest, NamespaceMode, NamespaceOptions, Resources
from bridge.core.preview import Preview
from bridge.core.services import Services
from bridge.errors import InvalidRequest, NotFound, Unsupported
from bridge.ports.handlers import HandlerPolicy
from bridge.ports.runtime import Ability, Feature, RuntimeFeatures, SandboxKind, SandboxSpec, Support
from bridge.testing.fakes import FakeBackend
from tests.component.conftest import PRIVATE_PID, World, container, pod

pytestmark = pytest.mark.root

Spec = Mapping[str, Any]


def marking(spec: Spec, pod: Spec, container: Spec) -> Iterator[tuple[str, Spec]]:
    """Two plugins: one leaves the spec, one adds what it was told."""
    yield "idle", spec
    yield "marker", {**spec, "annotations": {**spec["annotations"], "handler": pod["handler"], "uid": pod["uid"]}}


async def preview(core: Services, *, handler: str = "", **changes: Any) -> Preview:
    return await core.previewer.container(handler, pod(), container(**changes), marking)


async def test_each_source_is_shown_and_nothing_is_made(world: World, core: Services) -> None:
    core.ports.handlers.choices = HandlerPolicy(base_spec={"process": {"env": ["FROM_BASE=1"]}})  # type: ignore[attr-defined]
    before = world.leftovers()
    made = await preview(core)
    assert [step.source for step in made.steps] == ["the request", "the handler's base spec", "plugin idle", "plugin marker"]
    assert made.notes == ()
    final = made.steps[-1].spec
    assert "FROM_BASE=1" in final["process"]["env"]
    assert (final["annotations"]["handler"], final["annotations"]["uid"]) == ("fake", "uid-web")
    assert world.leftovers() == before
    assert (dict(core.store.sandboxes), dict(core.store.containers)) == ({}, {})


async def test_it_is_what_the_container_gets_but_for_ids(world: World, core: Services) -> None:
    made = await preview(core)
    sandbox = await core.sandboxes.run(pod(), "")
    real = await core.containers.create(sandbox.id, container())
    text = json.dumps(world.backend.containers[real.id].spec.oci).replace(sandbox.id, "5" * 64).replace(real.id, "c" * 64)
    assert json.loads(text) == json.loads(json.dumps(made.steps[0].spec))
    await core.sandboxes.remove(sandbox.id)


async def test_what_is_guessed_is_noted(core: Services) -> None:
    user = ContainerSecurity(namespaces=PRIVATE_PID, run_as_username="somebody")
    mount = MountRequest(container_path="/data", host_path="/no/such/source")
    made = await preview(core, image=ImageSpec("not-here"), security=user, mounts=(mount,))
    assert made.notes[0] == "image 'not-here' is not in the store: its command, environment and user are missing"
    assert "somebody" in made.notes[1]
    assert "sources of the mounts were not looked at" in made.notes[2]
    assert ("/data", "/no/such/source") in [(each["destination"], each["source"]) for each in made.steps[-1].spec["mounts"]]


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"handler": "broken"}, NotFound, "broken"),
        ({"image": ImageSpec("")}, InvalidRequest, r"config\.image\.image: must not be empty"),
        ({"mounts": (MountRequest(container_path="/x", host_path="relative"),)}, InvalidRequest, r"config\.mounts\[0\]\.host_path"),
        ({"tty": True}, Unsupported, r"config\.tty: this handler can't do it \(none here\)"),
    ],
)
async def test_refusals_are_those_of_the_real_thing(
    world: World, core: Services, changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    found: RuntimeFeatures = world.backend.features
    abilities = {**found.abilities, Ability.TTY: Feature(Support.UNSUPPORTED, "none here")}
    world.backend.features = dataclasses.replace(found, abilities=abilities)
    with pytest.raises(error, match=words):
        await preview(core, **changes)


async def test_a_pod_in_the_nodes_network_has_no_namespaces_of_its_own(core: Services) -> None:
    options = NamespaceOptions(network=NamespaceMode.NODE, pid=NamespaceMode.CONTAINER, ipc=NamespaceMode.NODE)
    config = dataclasses.replace(pod(), security=dataclasses.replace(pod().security, namespaces=options), hostname="")
    made = await core.previewer.container("", config, container(), lambda *_: ())
    assert {each["type"] for each in made.steps[-1].spec["linux"]["namespaces"]}.isdisjoint({"network", "ipc", "uts"})


@pytest.mark.parametrize("kind", [SandboxKind.CONTAINER, SandboxKind.VM])
async def test_the_container_that_a_pod_has_for_itself(world: World, kind: SandboxKind) -> None:
    world.backend = Showing(kind)
    async with world.started() as core:
        made = await core.previewer.sandbox("", pod(hostname="inside", resources=Resources(cpu_shares=512)))
        assert [step.source for step in made.steps] == ["the request", "handler fake"]
        first, last = (step.spec for step in made.steps)
        assert (first["hostname"], first["annotations"]["io.kubernetes.cri.container-type"]) == ("inside", "sandbox")
        assert first["linux"]["resources"]["cpu"] == {"shares": 512}
        assert last["annotations"] == {"shown": "5" * 64}
        assert (await preview(core)).steps[-1].spec["annotations"] == {"shown": "container"}
        assert dict(core.store.sandboxes) == {}


async def test_a_pod_without_a_container_of_its_own(core: Services) -> None:
    with pytest.raises(NotFound, match="a pod like this on handler 'fake' has no container of its own"):
        await core.previewer.sandbox("", pod())


class Showing(FakeBackend):
    """Tells what it makes of specs."""

    def final_spec(self, oci: Spec) -> Spec:
        return {**oci, "annotations": {"shown": "container"}}

    def final_sandbox_spec(self, spec: SandboxSpec) -> Spec:
        assert spec.oci is not None
        return {**spec.oci, "annotations": {"shown": spec.id}}
