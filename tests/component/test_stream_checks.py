"""What Exec, Attach and PortForward refuse before a client connects."""

from __future__ import annotations

import dataclasses

import pytest

from bridge.core.entities import Container
from bridge.core.services import Services
from bridge.core.stream_requests import AttachRequest, ExecRequest, PortForwardRequest, Stdio
from bridge.errors import IllegalTransition, InvalidRequest, NotFound, Unsupported
from bridge.ports.runtime import Ability, Feature, Support
from tests.component.conftest import World, container, pod

pytestmark = pytest.mark.root
ALL = Stdio(True, True, True)
TTY = Stdio(True, True, tty=True)


async def running(core: Services, name: str = "app", *, tty: bool = False) -> Container:
    sandbox = await core.sandboxes.run(pod(name), "")
    made = await core.containers.create(sandbox.id, container(tty=tty))
    await core.containers.start(made.id)
    return core.store.containers[made.id]


def without(world: World, ability: Ability) -> None:
    features = world.backend.features
    abilities = {**features.abilities, ability: Feature(Support.UNSUPPORTED, "its network is in a guest")}
    world.backend.features = dataclasses.replace(features, abilities=abilities)


async def test_a_prefix_becomes_the_full_id(core: Services) -> None:
    made = await running(core)
    request = ExecRequest(made.id[:12], ("ls",), ALL)
    assert await core.streams.check_exec(request) == dataclasses.replace(request, container_id=made.id)
    assert (await core.streams.check_attach(AttachRequest(made.id[:12], ALL))).container_id == made.id
    assert (await core.streams.check_port_forward(PortForwardRequest(made.sandbox_id[:12], (80,)))).sandbox_id == made.sandbox_id


async def test_streams_that_make_no_sense(core: Services) -> None:
    made = await running(core)
    for stdio, why in ((Stdio(), "stdin: one of"), (Stdio(tty=True), "stdin: one of"), (Stdio(True, True, True, True), "stderr: must be")):
        with pytest.raises(InvalidRequest, match=why):
            await core.streams.check_exec(ExecRequest(made.id, ("ls",), stdio))
        with pytest.raises(InvalidRequest, match=why):
            await core.streams.check_attach(AttachRequest(made.id, stdio))


@pytest.mark.parametrize("argv", [(), ("",), ("ls", "a\0b")])
async def test_a_command_that_is_none(core: Services, argv: tuple[str, ...]) -> None:
    made = await running(core)
    with pytest.raises(InvalidRequest, match="cmd: "):
        await core.streams.check_exec(ExecRequest(made.id, argv, ALL))


async def test_a_terminal_where_there_is_none(core: Services) -> None:
    plain, terminal = await running(core), await running(core, "other", tty=True)
    with pytest.raises(InvalidRequest, match="tty: must be false: the container was made without"):
        await core.streams.check_attach(AttachRequest(plain.id, TTY))
    await core.streams.check_attach(AttachRequest(terminal.id, TTY))
    await core.streams.check_attach(AttachRequest(terminal.id, ALL))
    await core.streams.check_exec(ExecRequest(plain.id, ("sh",), TTY))


async def test_what_is_not_there_or_does_not_run(core: Services) -> None:
    with pytest.raises(NotFound):
        await core.streams.check_exec(ExecRequest("nope", ("ls",), ALL))
    with pytest.raises(NotFound):
        await core.streams.check_attach(AttachRequest("nope", ALL))
    with pytest.raises(NotFound):
        await core.streams.check_port_forward(PortForwardRequest("nope"))
    made = await running(core)
    await core.containers.stop(made.id, 0)
    with pytest.raises(IllegalTransition, match="is exited, not running"):
        await core.streams.check_exec(ExecRequest(made.id, ("ls",), ALL))
    with pytest.raises(IllegalTransition, match="is exited, not running"):
        await core.streams.check_attach(AttachRequest(made.id, ALL))
    await core.sandboxes.stop(made.sandbox_id)
    with pytest.raises(IllegalTransition, match="is stopped, not ready"):
        await core.streams.check_port_forward(PortForwardRequest(made.sandbox_id))


@pytest.mark.parametrize("port", [0, 65536, -3])
async def test_a_port_that_is_none(core: Services, port: int) -> None:
    made = await running(core)
    with pytest.raises(InvalidRequest, match=r"port\[1\]: "):
        await core.streams.check_port_forward(PortForwardRequest(made.sandbox_id, (80, port)))


async def test_what_a_handler_lacks(core: Services, world: World) -> None:
    made = await running(core)
    without(world, Ability.TTY)
    with pytest.raises(Unsupported, match="tty: handler 'fake' can't do it"):
        await core.streams.check_exec(ExecRequest(made.id, ("sh",), TTY))
    without(world, Ability.EXEC)
    with pytest.raises(Unsupported, match="exec: handler"):
        await core.streams.check_exec(ExecRequest(made.id, ("sh",), ALL))
    without(world, Ability.PORT_FORWARD)
    with pytest.raises(Unsupported, match=r"port-forward: .*in a guest"):
        await core.streams.check_port_forward(PortForwardRequest(made.sandbox_id))
