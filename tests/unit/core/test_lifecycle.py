"""The transition tables: what is listed happens, everything else is refused and changes nothing."""

import pytest

from bridge.core import lifecycle
from bridge.core.entities import ContainerState, SandboxState
from bridge.errors import IllegalTransition


def test_every_state_can_be_removed() -> None:
    for sandbox in SandboxState:
        assert lifecycle.follow(lifecycle.SANDBOX, "s", sandbox, "removing") is SandboxState.REMOVING
    for container in ContainerState:
        assert lifecycle.follow(lifecycle.CONTAINER, "c", container, "removing") is ContainerState.REMOVING


@pytest.mark.parametrize("state", [state for state in ContainerState if state is not ContainerState.CREATED])
def test_only_a_created_container_starts(state: ContainerState) -> None:
    with pytest.raises(IllegalTransition, match=rf"c is {state}: 'starting' is not possible now"):
        lifecycle.follow(lifecycle.CONTAINER, "c", state, "starting")


def test_the_error_lists_what_is_possible() -> None:
    with pytest.raises(IllegalTransition, match=r"possible: abandoned, journal, removing, starting"):
        lifecycle.follow(lifecycle.CONTAINER, "c", ContainerState.CREATED, "exited")


def test_every_state_but_the_first_is_reached_by_some_event() -> None:
    assert set(lifecycle.SANDBOX.values()) == set(SandboxState)
    assert set(lifecycle.CONTAINER.values()) == set(ContainerState)
    assert {source for source, _ in lifecycle.CONTAINER} == set(ContainerState)
