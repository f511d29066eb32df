"""The record of one pod's attachment: all that ADD, CHECK and DEL need, so that none of them looks at the files again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from bridge.errors import ConfigError, CorruptData
from bridge.network.conf import NetworkConf, from_object
from bridge.network.invoke import AttachmentParameters
from bridge.ports.network import Attachment

_VERSION = 1


@dataclass(frozen=True, slots=True)
class AttachmentRecord:
    """An Attachment's ``data``, typed. ``result`` is what the last plugin of the ADD answered, None before that."""

    conf: NetworkConf
    parameters: AttachmentParameters
    capabilities: Mapping[str, Any]
    result: Mapping[str, Any] | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """Network, container id and interface: what identifies an attachment (section 3)."""
        return self.conf.name, self.parameters.container_id, self.parameters.ifname

    def with_result(self, result: Mapping[str, Any]) -> AttachmentRecord:
        """The same attachment, after its ADD."""
        return replace(self, result=result)

    def to_attachment(self) -> Attachment:
        """As the port's JSON-able value."""
        parameters = self.parameters
        data: dict[str, Any] = {
            "v": _VERSION,
            "container_id": parameters.container_id,
            "netns": parameters.netns,
            "ifname": parameters.ifname,
            "args": parameters.args,
            "capabilities": dict(self.capabilities),
            "conf": self.conf.to_object(),
            "result": self.result,
        }
        return Attachment(self.conf.name, data)

    @classmethod
    def from_attachment(cls, attachment: Attachment) -> AttachmentRecord:
        """Read it back. Raises CorruptData."""
        data = attachment.data
        try:
            if data["v"] != _VERSION:
                raise CorruptData(f"the attachment to network {attachment.network!r} is of the unknown version {data['v']!r}")
            conf = from_object(data["conf"], f"stored attachment to {attachment.network}")
            parameters = AttachmentParameters(data["container_id"], data["netns"], data["ifname"], data["args"])
            return cls(conf, parameters, data["capabilities"], data["result"])
        except (KeyError, TypeError, AttributeError, ConfigError) as exc:
            raise CorruptData(f"the stored attachment to network {attachment.network!r} can't be read: {exc!r}") from exc
