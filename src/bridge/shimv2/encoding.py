"""Messages of shims from and to bytes: their Any, their timestamps, and errors that say what was wrong.

Any names its type without a host, as containerd does: "containerd.events.TaskExit". OCI objects travel in it as JSON.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any as Anything
from typing import Final, TypeVar

from betterproto2 import Message

from bridge._proto.containerd.runc.v1 import Options as RuncOptions
from bridge._proto.containerd.types import Any, Timestamp
from bridge._proto.runtimeoptions.v1 import Options as RuntimeOptions
from bridge.errors import CorruptData
from bridge.wire import codec
from bridge.wire.codec import encode

M = TypeVar("M", bound=Message)

PROCESS: Final = "types.containerd.io/opencontainers/runtime-spec/1/Process"
"""Type of Any: the JSON of an OCI process, of ``linux.resources``, and of the OCI runtime's features."""
RESOURCES: Final = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"
FEATURES: Final = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"


def decode(cls: type[M], data: bytes) -> M:
    """The message that ``data`` encodes. Raises CorruptData on malformed input."""
    try:
        return codec.decode(cls, data)
    except ValueError as exc:
        raise CorruptData(str(exc)) from exc


def packed(name: str, message: Message) -> Any:
    """``message`` as an Any of the type ``name``."""
    return Any(type_url=name, value=encode(message))


def packed_json(name: str, value: Mapping[str, Anything]) -> Any:
    """An OCI object as an Any."""
    return Any(type_url=name, value=json.dumps(value, separators=(",", ":")).encode())


def type_name(packed: Any) -> str:
    """The type in ``packed``, without a host before it."""
    return packed.type_url if packed.type_url.startswith("types.containerd.io/") else packed.type_url.rpartition("/")[2]


def runtime_options(*, config_path: str = "", config_body: bytes = b"", type_url: str = "") -> Any:
    """``runtimeoptions.v1.Options``, which Kata and gVisor understand: where their configuration is, or what it is."""
    return packed("runtimeoptions.v1.Options", RuntimeOptions(type_url=type_url, config_path=config_path, config_body=config_body))


def runc_options(*, binary_name: str = "", root: str = "", systemd_cgroup: bool = False, owner: tuple[int, int] = (0, 0)) -> Any:
    """``containerd.runc.v1.Options``: the OCI command, its directory of state, how it makes cgroups, and whose a container's pipes are."""
    options = RuncOptions(binary_name=binary_name, root=root, systemd_cgroup=systemd_cgroup, io_uid=owner[0], io_gid=owner[1])
    return packed("containerd.runc.v1.Options", options)


def nanoseconds(timestamp: Timestamp | None) -> int:
    """Unix time in nanoseconds; 0 where there is none, as before 1970 (Go's zero time) and after what an int64 can tell."""
    found = 0 if timestamp is None else timestamp.seconds * 1_000_000_000 + timestamp.nanos
    return found if 0 < found < 1 << 63 else 0


def timestamp(at_ns: int | None = None) -> Timestamp:
    """``at_ns`` (Unix time, nanoseconds), or now."""
    seconds, nanos = divmod(time.time_ns() if at_ns is None else at_ns, 1_000_000_000)
    return Timestamp(seconds=seconds, nanos=nanos)
