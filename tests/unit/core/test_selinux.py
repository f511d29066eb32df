"""Labels of pods and containers: from the policy's contexts and the request to the OCI spec."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from bridge.core import selinux
from bridge.core.entities import Sandbox
from bridge.core.live import Live
from bridge.core.model import ContainerConfig, ContainerSecurity, NamespaceMode, NamespaceOptions, SandboxSecurity, SELinuxOptions
from bridge.core.selinux import Labels
from bridge.core.spec import build_container, build_sandbox
from bridge.core.store import MIGRATIONS, Store
from bridge.errors import InvalidRequest, LimitExceeded, Unsupported
from bridge.host import selinux as host_selinux
from bridge.host.database import Database
from bridge.host.selinux import Contexts
from bridge.ports.runtime import Ability, Feature, Support
from bridge.testing.fakes import FakeBackend
from tests.unit.core.spec_cases import FACTS, SETTINGS, config, inputs, sandbox
from tests.unit.selinux_trees import tree

CONTEXTS = Contexts("system_u:system_r:container_t:s0", "system_u:object_r:container_file_t:s0", "system_u:object_r:ro_t:s0", "targeted")
PROCESS, MOUNT = "system_u:system_r:container_t:s0:c1,c2", "system_u:object_r:container_file_t:s0:c1,c2"
NODE, POD, CONTAINER = NamespaceMode.NODE, NamespaceMode.POD, NamespaceMode.CONTAINER
FIELD = "config.linux.security_context.selinux_options"


def pod(*, asked: SELinuxOptions | None = None, privileged: bool = False, **namespaces: Any) -> Sandbox:
    """A labelled pod."""
    options = NamespaceOptions(**{"pid": CONTAINER, **namespaces})
    made = sandbox(privileged=privileged, selinux_process=PROCESS, selinux_mount=MOUNT)
    security = SandboxSecurity(namespaces=options, privileged=privileged, selinux=asked)
    return dataclasses.replace(made, config=dataclasses.replace(made.config, security=security))


def container(asked: SELinuxOptions | None = None, **security: Any) -> ContainerConfig:
    given = {"namespaces": NamespaceOptions(pid=CONTAINER), **security}
    return config(security=ContainerSecurity(selinux=asked, **given))


def test_a_container_has_its_pods_labels() -> None:
    assert selinux.of_container(pod(), container()) == Labels(PROCESS, MOUNT)
    assert selinux.of_container(pod(), container(SELinuxOptions())) == Labels(PROCESS, MOUNT)
    assert selinux.of_sandbox(pod()) == Labels(PROCESS, MOUNT)


@pytest.mark.parametrize(
    ("asked", "process", "mount"),
    [
        (SELinuxOptions(type="my_t"), "system_u:system_r:my_t:s0:c1,c2", MOUNT),
        (SELinuxOptions(role="my_r"), "system_u:my_r:container_t:s0:c1,c2", MOUNT),
        (SELinuxOptions(user="my_u"), "my_u:system_r:container_t:s0:c1,c2", "my_u:object_r:container_file_t:s0:c1,c2"),
        (SELinuxOptions(level="s0:c7"), "system_u:system_r:container_t:s0:c7", "system_u:object_r:container_file_t:s0:c7"),
        (SELinuxOptions("u_u", "r_r", "t_t", "s1"), "u_u:r_r:t_t:s1", "u_u:object_r:container_file_t:s1"),
    ],
)
def test_a_container_changes_single_fields_and_keeps_the_pods_others(asked: SELinuxOptions, process: str, mount: str) -> None:
    assert selinux.of_container(pod(), container(asked)) == Labels(process, mount)


def test_privileged_means_no_restrictions_whatever_is_asked() -> None:
    asked = SELinuxOptions(type="my_t")
    assert selinux.of_container(pod(privileged=True), container(asked, privileged=True)) == Labels(mount=MOUNT)
    assert selinux.of_sandbox(pod(privileged=True)) == Labels(mount=MOUNT)
    assert selinux.of_container(pod(privileged=True), container()) == Labels(PROCESS, MOUNT)


@pytest.mark.parametrize(
    ("shared", "labels"),
    [
        ({"pid": NODE}, Labels()),
        ({"ipc": NODE}, Labels()),
        ({"network": NODE}, Labels(mount=MOUNT)),
        ({"pid": POD}, Labels(PROCESS, MOUNT)),
    ],
)
def test_the_hosts_namespaces_leave_the_label_to_the_policy(shared: dict[str, Any], labels: Labels) -> None:
    assert selinux.of_sandbox(pod(**shared)) == labels
    own = container(namespaces=NamespaceOptions(pid=POD))
    assert selinux.of_container(pod(**shared), own) == labels
    asked = SELinuxOptions(type="my_t")
    assert selinux.of_container(pod(**shared), container(asked)).process == "system_u:system_r:my_t:s0:c1,c2"
    assert selinux.of_sandbox(pod(asked=asked, **shared)).process == PROCESS
    assert selinux.of_container(pod(asked=asked, **shared), own).process == PROCESS


def test_a_containers_own_host_pid_namespace_counts() -> None:
    assert selinux.of_container(pod(), container(namespaces=NamespaceOptions(pid=NODE))) == Labels()


def test_a_record_of_an_earlier_release_has_no_labels() -> None:
    assert selinux.of_container(sandbox(), container(SELinuxOptions(type="my_t"))) == Labels()


@pytest.mark.parametrize("level", ["s0", "s0:c0", "s0:c1,c2", "s0:c0.c1023", "s0-s15:c0.c1023", "s0-s0:c0.c5,c9", "s0:c1-s1:c1,c2", "s15"])
def test_levels(level: str) -> None:
    assert selinux.checked(SELinuxOptions(level=level), FIELD).level == level


@pytest.mark.parametrize(
    "level",
    [
        "0",
        "s",
        "s0:",
        "s0:1",
        "s0:c",
        "s0:c1,",
        "s0:c2.c1",
        "s1-s0",
        "s0:c1;c2",
        "s0:c1,c2\n",
        "s0:c1\0",
        "s0 :c1",
        "SystemLow",
        "s0:c12345",
    ],
)
def test_what_is_no_level(level: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        selinux.of_container(pod(), container(SELinuxOptions(level=level)))
    assert refused.value.field == f"{FIELD}.level"


@pytest.mark.parametrize("name", ["user", "role", "type"])
@pytest.mark.parametrize("value", ["a:b", "a b", "a,b", 'a"', "a\n", "-a", "a" * 129, "ä"])
def test_identifiers_can_t_carry_more_than_themselves(name: str, value: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        selinux.checked(SELinuxOptions(**{name: value}), FIELD)
    assert refused.value.field == f"{FIELD}.{name}"


def test_the_spec_of_a_container_and_of_a_sandbox() -> None:
    made = pod(pid=POD)
    given = inputs(sandbox=made, labels=Labels("p:p:p:s0", "m:m:m:s0"), config=config(security=ContainerSecurity()))
    spec = build_container(given, FACTS, SETTINGS)
    assert (spec["process"]["selinuxLabel"], spec["linux"]["mountLabel"]) == ("p:p:p:s0", "m:m:m:s0")
    pause = build_sandbox(made, Path("/pause"), ["/pause"], FACTS, SETTINGS)
    assert (pause["process"]["selinuxLabel"], pause["linux"]["mountLabel"]) == (PROCESS, MOUNT)
    plain = build_container(inputs(), FACTS, SETTINGS)
    assert "selinuxLabel" not in plain["process"]
    assert "mountLabel" not in plain["linux"]


def test_volumes_of_an_unconfined_container_keep_their_labels() -> None:
    labels = Labels(PROCESS, MOUNT)
    spc = SELinuxOptions(type="spc_t")
    assert selinux.relabels(pod(), labels, container()) == MOUNT
    assert selinux.relabels(pod(), labels, container(spc)) == ""
    assert selinux.relabels(pod(asked=spc), labels, container()) == ""
    assert selinux.relabels(pod(asked=spc), labels, container(SELinuxOptions(type="container_t"))) == MOUNT
    assert selinux.relabels(pod(), Labels(), container()) == ""


def test_a_handler_that_can_t_label_is_refused_where_a_label_is_due() -> None:
    able, unable = FakeBackend(), FakeBackend()
    abilities = {Ability.SELINUX: Feature(Support.SUPPORTED, "")}
    able.features = dataclasses.replace(able.features, abilities={**able.features.abilities, **abilities})
    without = {Ability.SELINUX: Feature(Support.UNSUPPORTED, "built without it")}
    unable.features = dataclasses.replace(unable.features, abilities={**unable.features.abilities, **without})
    selinux.check_ability(Labels(PROCESS, MOUNT), able)
    selinux.check_ability(Labels(mount=MOUNT), unable)
    with pytest.raises(Unsupported, match=rf"{FIELD}.*built without it"):
        selinux.check_ability(Labels(PROCESS, MOUNT), unable)


# --- categories


@pytest.fixture
def live() -> Live:
    return Live()


async def stored(path: Path, *levels: str) -> Store:
    store = Store(await Database.open(path / "state.db", MIGRATIONS))
    for number, level in enumerate(levels):
        made = sandbox(id=f"s{number}", selinux_process=f"u:r:t:{level}")
        meta = dataclasses.replace(made.config.metadata, uid=f"uid-{number}")
        await store.add(dataclasses.replace(made, config=dataclasses.replace(made.config, metadata=meta)))
    return store


async def close(store: Store) -> None:
    await store._database.close()


async def test_every_pod_gets_a_pair_of_its_own_until_none_is_left(tmp_path: Path, live: Live) -> None:
    store = await stored(tmp_path, "s0:c0,c1", "s0:c0,c2", "s0:c1,c2")
    with (
        selinux.of_pod(sandbox().config, CONTEXTS, 4, store, live) as one,
        selinux.of_pod(sandbox().config, CONTEXTS, 4, store, live) as two,
    ):
        with selinux.of_pod(sandbox().config, CONTEXTS, 4, store, live) as three:
            levels = {selinux.parse(each.process).level for each in (one, two, three)}
            assert levels == {"s0:c0,c3", "s0:c1,c3", "s0:c2,c3"}
            assert three.mount.endswith(selinux.parse(three.process).level)
            with pytest.raises(LimitExceeded, match=r"all 6 pairs.*security\.selinux_categories"):
                with selinux.of_pod(sandbox().config, CONTEXTS, 4, store, live):
                    pass
    assert live.selinux_levels == set()
    await store.remove("s1")
    with selinux.of_pod(sandbox().config, CONTEXTS, 3, store, live) as again:
        assert selinux.parse(again.process).level == "s0:c0,c2"
    await close(store)


async def test_pairs_survive_a_restart(tmp_path: Path, live: Live) -> None:
    await close(await stored(tmp_path, "s0:c0,c1", "s0:c0,c2"))
    store = Store(await Database.open(tmp_path / "state.db", MIGRATIONS))
    await store.load()
    with selinux.of_pod(sandbox().config, CONTEXTS, 3, store, live) as labels:
        assert selinux.parse(labels.process).level == "s0:c1,c2"
    await close(store)


async def test_a_pair_that_a_pod_or_container_asked_for_is_not_given_to_others(tmp_path: Path, live: Live) -> None:
    asked = dataclasses.replace(sandbox().config, security=SandboxSecurity(selinux=SELinuxOptions(level="s0:c0,c1")))
    store = await stored(tmp_path, "s0:c0,c1")
    with selinux.of_pod(asked, CONTEXTS, 3, store, live) as same:
        assert selinux.parse(same.process).level == "s0:c0,c1"
        assert live.selinux_levels == set()
    assert selinux.taken(store) == {"s0:c0,c1"}
    await close(store)


async def test_policies_without_levels_and_hosts_without_selinux(tmp_path: Path, live: Live) -> None:
    store = await stored(tmp_path)
    plain = dataclasses.replace(CONTEXTS, process="u:r:t", file="u:o:f")
    with selinux.of_pod(sandbox().config, plain, 1024, store, live) as labels:
        assert labels == Labels("u:r:t", "u:o:f")
    with selinux.of_pod(sandbox().config, None, 1024, store, live) as labels:
        assert labels == Labels()
    wrong = dataclasses.replace(sandbox().config, security=SandboxSecurity(selinux=SELinuxOptions(level="high")))
    with pytest.raises(InvalidRequest, match=f"{FIELD}.level"), selinux.of_pod(wrong, None, 1024, store, live):
        pass
    await close(store)


async def test_the_kernel_is_asked_about_what_a_request_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contexts = dataclasses.replace(CONTEXTS, root=tree(tmp_path))
    asked = SELinuxOptions(type="my_t")
    await selinux.check_known(Labels(PROCESS, MOUNT), asked, contexts)
    assert (tmp_path / "sys/fs/selinux/context").read_text().startswith(MOUNT)
    monkeypatch.setattr(host_selinux, "known", lambda context, root: "object_r" in context)
    await selinux.check_known(Labels(PROCESS, MOUNT), None, contexts)
    with pytest.raises(InvalidRequest, match=rf"{FIELD}: the SELinux policy targeted has no context {PROCESS}"):
        await selinux.check_known(Labels(PROCESS, MOUNT), asked, contexts)
