"""What the verb "delete" does: remove one container of a pod whose shim has died, and with the last one the machine."""

from __future__ import annotations

import anyio

from bridge._proto.containerd.task.v2 import DeleteResponse
from bridge.shimv2.encoding import timestamp
from bridge.testing.fake_kata import places
from bridge.testing.fake_kata.machine import Agent, Refused, forget, kill_hypervisor
from bridge.wire.codec import encode

_KILLED = 137
_ASK_SECONDS = 10.0


def clean_up(sandbox_id: str, ident: str) -> bytes:
    """Returns the encoded DeleteResponse. Raises OSError when nothing is known of the pod (any more)."""
    state = places.state_dir(sandbox_id)
    if not state.is_dir():
        raise FileNotFoundError(f"failed to cleanup container: open {state}: no such file or directory")
    anyio.run(_remove, sandbox_id, ident)
    (state / ident).unlink(missing_ok=True)
    if not any(state.iterdir()):
        kill_hypervisor(sandbox_id)
        forget(sandbox_id)
        state.rmdir()
    return encode(DeleteResponse(exit_status=_KILLED, exited_at=timestamp()))


async def _remove(sandbox_id: str, ident: str) -> None:
    """By the agent, if the machine still runs."""
    try:
        agent = Agent(places.agent_socket(sandbox_id))
    except OSError:
        return
    with anyio.move_on_after(_ASK_SECONDS):
        try:
            await agent.ask("delete", container=ident)
        except Refused:
            return
        finally:
            agent.close()
