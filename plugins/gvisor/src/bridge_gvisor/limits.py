"""What runsc itself can't do of ``cri-bridge conform``, with the reason; what the probe declares unsupported needs no word here."""

from __future__ import annotations

from collections.abc import Mapping

from bridge_gvisor.options import GvisorOptions

_ALWAYS = {
    "exec-leaves-nothing": "runsc can't tell an exec's children from the container's once the exec has ended; those of one that is cut "
    "off are killed",
    "no-new-privileges": "gVisor's /proc/PID/status does not tell it",
}
_HOSTS_STACK_BEFORE_2023 = (
    "runsc of 2022 gives EAGAIN where a program waits for data on a socket of the host's stack; bare `runsc --network=host run` does too"
)


_SECCOMP = {"seccomp": "`runsc exec` starts processes without the container's profile (its own processes have it)"}


def limits(options: GvisorOptions, version: str) -> Mapping[str, str]:
    """Spec → why it can't pass."""
    found = {**_ALWAYS, **(_SECCOMP if options.oci_seccomp else {})}
    if "2022" not in version:
        return found
    why = _HOSTS_STACK_BEFORE_2023 if options.network == "host" else "runsc of 2022 has no port-forward: the pod's address alone is reached"
    return {**found, "port-forward-to-localhost": why}
