"""CDI devices, hooks, base specs and annotations through the whole core: what the backend gets."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bridge.core import cdi, cdi_spec, hooks
from bridge.core.injections import Injections, Sources
from bridge.core.model import IDMapping, NamespaceMode, NamespaceOptions, UserNamespace
from bridge.core.spec import build_container
from bridge.errors import HostError, InvalidRequest, Unsupported
from bridge.host.watched_files import WatchedFiles
from bridge.ports.handlers import HandlerPolicy
from bridge.ports.runtime import Ability, Feature, Support
from bridge.testing.fake_handlers import FakeHandlers
from bridge.testing.fakes import FakeBackend
from tests.unit.core.spec_cases import FACTS, SETTINGS, config, inputs, sandbox

Spec = dict[str, Any]


class Place:
    """Directories for CDI specs and hooks, and the injections over them."""

    def __init__(self, root: Path, backend: FakeBackend, sources: Sources) -> None:
        self.root = root
        self.backend = backend
        self.handlers = FakeHandlers(backend)
        self.injections = Injections(self.handlers, sources)

    def cdi(self, name: str, edits: Mapping[str, Any], version: str = "1.1.0") -> None:
        spec = {"cdiVersion": version, "kind": "v.com/c", "devices": [{"name": name, "containerEdits": edits}]}
        (self.root / "cdi" / f"{name}.json").write_text(json.dumps(spec))

    def hook(self, name: str, script: str, *stages: str, when: Mapping[str, Any] | None = None, **more: Any) -> None:
        program = self.root / f"{name}.sh"
        program.write_text("#!/bin/sh\n" + script)
        program.chmod(0o755)
        whole = {"version": "1.0.0", "hook": {"path": str(program), **more}, "when": when or {"always": True}, "stages": stages}
        (self.root / "hooks" / f"{name}.json").write_text(json.dumps(whole))

    async def spec(self, **changes: Any) -> Spec:
        annotations, namespaces = changes.pop("pod_annotations", {}), changes.pop("pod_namespaces", NamespaceOptions())
        pod = sandbox(handler="fake")
        security = dataclasses.replace(pod.config.security, namespaces=namespaces)
        pod = dataclasses.replace(pod, config=dataclasses.replace(pod.config, annotations=annotations, security=security))
        given = inputs(sandbox=pod, config=config(**changes))
        return await self.injections.apply(build_container(given, FACTS, SETTINGS), given)


@asynccontextmanager
async def opened(root: Path) -> AsyncIterator[Place]:
    async with AsyncExitStack() as stack:
        specs = await stack.enter_async_context(WatchedFiles.open([root / "cdi"], cdi_spec.ENDINGS, cdi.parse_all))
        found = await stack.enter_async_context(WatchedFiles.open([root / "hooks"], hooks.ENDINGS, hooks.parse_all))
        yield Place(root, FakeBackend(), Sources(specs, found))


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    for name in ("cdi", "hooks"):
        (tmp_path / name).mkdir()
    async with opened(tmp_path) as made:
        yield made


async def test_a_container_that_uses_none_of_it_gets_its_spec_as_it_was(place: Place) -> None:
    place.cdi("x", {"env": ["A=1"]})
    place.hook("h", "true", "poststop", when={"annotations": {"wanted": "yes"}})
    given = inputs(sandbox=sandbox(handler="fake"))
    spec = build_container(given, FACTS, SETTINGS)
    assert await place.injections.apply(spec, given) is spec


async def test_the_order_is_base_spec_cdi_hooks(place: Place) -> None:
    def hook(path: str) -> dict[str, str]:
        return {"path": path}

    place.handlers.choices = HandlerPolicy(base_spec={"hooks": {"poststop": [hook("/base")]}, "process": {"env": ["E=base", "B=1"]}})
    place.cdi("x", {"env": ["E=cdi"], "hooks": [{"hookName": "poststop", "path": "/cdi"}]})
    place.hook("h", "true", "poststop")
    spec = await place.spec(cdi_devices=("v.com/c=x",))
    assert spec["hooks"]["poststop"] == [hook("/base"), hook("/cdi"), hook(str(place.root / "h.sh"))]
    assert {"E=cdi", "B=1"} <= set(spec["process"]["env"])


async def test_a_base_spec_hides_nothing_in_a_user_namespace_but_elsewhere(place: Place) -> None:
    place.handlers.choices = HandlerPolicy(base_spec={"linux": {"maskedPaths": ["/proc/mine"]}})
    assert (await place.spec())["linux"]["maskedPaths"] == ["/proc/mine"]
    one = (IDMapping(host_id=100000, container_id=0, length=65536),)
    namespaces = NamespaceOptions(user=UserNamespace(NamespaceMode.POD, uids=one, gids=one))
    assert "maskedPaths" not in (await place.spec(pod_namespaces=namespaces))["linux"]


async def test_cdi_edits_that_the_runtime_cannot_do_are_refused(place: Place) -> None:
    place.cdi("nic", {"netDevices": [{"hostInterfaceName": "eth7", "name": "net0"}]})
    place.cdi("rdt", {"intelRdt": {"schemata": ["L3:0=f"]}})
    place.cdi("old", {"intelRdt": {"closID": "c"}})
    assert (await place.spec(cdi_devices=("v.com/c=nic",)))["linux"]["netDevices"] == {"eth7": {"name": "net0"}}
    features = place.backend.features
    lacking = (Ability.NET_DEVICES, Ability.RDT_SCHEMATA)
    abilities: dict[Ability, Feature] = {ability: features.abilities[ability] for ability in Ability if ability not in lacking}
    place.backend.features = dataclasses.replace(features, abilities=abilities)
    for name, edit in (("nic", "netDevices"), ("rdt", "intelRdt.schemata")):
        with pytest.raises(Unsupported, match=rf"config.CDI_devices\[0\].name: handler 'fake' can't do the CDI edit {edit}"):
            await place.spec(cdi_devices=(f"v.com/c={name}",))
    assert (await place.spec(cdi_devices=("v.com/c=old",)))["linux"]["intelRdt"] == {"closID": "c"}


async def test_what_a_kernel_of_its_own_cannot_do_is_refused(place: Place) -> None:
    place.cdi("node", {"deviceNodes": [{"path": "/dev/null"}]})
    place.hook("inside", "true", "startContainer", when={"annotations": {"^a$": "^b$"}})
    assert (await place.spec(cdi_devices=("v.com/c=node",)))["linux"]["devices"]
    assert "startContainer" in (await place.spec(annotations={"a": "b"}))["hooks"]
    features = place.backend.features
    missing = Feature(Support.UNSUPPORTED, "its kernel is its own")
    lacking = dict.fromkeys((Ability.DEVICES, Ability.START_CONTAINER_HOOKS), missing)
    place.backend.features = dataclasses.replace(features, abilities={**features.abilities, **lacking})
    with pytest.raises(Unsupported, match=r"CDI_devices\[0\].name: .*deviceNodes \(its kernel is its own\)"):
        await place.spec(cdi_devices=("v.com/c=node",))
    with pytest.raises(Unsupported, match=r"inside.json: handler 'fake' can't run it in the container \(its kernel"):
        await place.spec(annotations={"a": "b"})
    assert "hooks" not in await place.spec()


async def test_a_name_is_looked_for_again_before_it_is_refused(place: Place) -> None:
    place.cdi("x", {"env": ["A=1"]})
    target = place.root / "elsewhere.json"
    (place.root / "cdi" / "x.json").rename(target)
    (place.root / "cdi" / "x.json").symlink_to(target)
    await place.spec(cdi_devices=("v.com/c=x",))
    target.write_text(target.read_text().replace('"name": "x"', '"name": "y"'))
    assert "A=1" in (await place.spec(cdi_devices=("v.com/c=y",)))["process"]["env"]
    with pytest.raises(InvalidRequest, match=r"of kind v.com/c there are: y"):
        await place.spec(cdi_devices=("v.com/c=x",))


async def test_hooks_see_annotations_of_pod_and_container_and_mounts_that_were_asked_for(place: Place) -> None:
    place.hook("pod", "true", "poststart", when={"annotations": {"^a$": "^pod$"}})
    place.hook("own", "true", "poststop", when={"annotations": {"^b$": "^own$"}})
    place.hook("mounts", "true", "createRuntime", when={"hasBindMounts": True})
    spec = await place.spec(annotations={"b": "own"}, pod_annotations={"a": "pod"})
    assert set(spec["hooks"]) == {"poststart", "poststop"}, "mounts that every container has don't count"


async def test_precreate_hooks_change_the_spec_one_after_the_other(place: Place) -> None:
    place.hook("1", 'sed "s/server/first/"', "precreate")
    place.hook("2", 'sed "s/first/$1 $MARK/"', "precreate", args=["name", "second"], env=["MARK=m"], timeout=5)
    spec = await place.spec()
    assert spec["process"]["args"] == ["second m"]
    assert "hooks" not in spec, "the runtime is told nothing of them"


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo no licence >&2; exit 3", r"1.sh failed \(exit code 3\): no licence"),
        ("exit 1", "it said nothing"),
        ("true", "answered no OCI spec"),
        ("echo '{}'", "answered no OCI spec"),
        ("echo nonsense", "answered no OCI spec"),
        ("sleep 60", "did not end within 1 s"),
    ],
)
async def test_precreate_hooks_that_fail_are_told_with_their_words(place: Place, script: str, words: str) -> None:
    place.hook("1", script, "precreate", timeout=1)
    with pytest.raises(HostError, match=rf"precreate hook {place.root}/hooks/1.json: .*{words}"):
        await place.spec()


async def test_a_precreate_hook_that_is_not_there(place: Place) -> None:
    place.hook("1", "", "precreate")
    (place.root / "1.sh").unlink()
    with pytest.raises(HostError, match=r"can't run .*1.sh: No such file"):
        await place.spec()


async def test_an_annotation_that_is_withheld_is_told_in_the_log(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    await place.spec(annotations={"run.oci.handler": "krun", "plain": "1"})
    (message,) = caplog.messages
    assert message.startswith("runtime.handlers.fake.allowed_annotations doesn't allow the annotations run.oci.handler:")


async def test_no_matching_hook_runs_nothing(place: Place) -> None:
    assert "hooks" not in await place.spec()
