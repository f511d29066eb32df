"""SELinux options on the real daemon, on a host as it is: they never keep a pod from starting where there is no SELinux."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from grpclib.const import Status

from bridge._proto.runtime import v1 as pb
from bridge.client import CriError
from bridge.host import selinux
from tests.integration.daemon_fixtures import handler, kubelet, node
from tests.integration.daemon_node import DaemonNode, Kubelet, namespaces

__all__ = ["handler", "kubelet", "node"]
pytestmark = pytest.mark.root


def security(**options: str) -> pb.LinuxContainerSecurityContext:
    return pb.LinuxContainerSecurityContext(namespace_options=namespaces(), selinux_options=pb.SeLinuxOption(**options))


async def test_status_says_which_mode_is_on(kubelet: Kubelet) -> None:
    answer = await kubelet.cri.runtime.status(pb.StatusRequest(verbose=True))
    mode = selinux.mode()
    assert json.loads(answer.info["selinux"]) == {"mode": str(mode), "labels": mode is not selinux.Mode.DISABLED}


async def test_options_are_checked_everywhere_and_worn_where_there_is_selinux(kubelet: Kubelet, node: DaemonNode, tmp_path: Path) -> None:
    config = kubelet.pod_config()
    assert config.linux is not None
    assert config.linux.security_context is not None
    config.linux.security_context.selinux_options = pb.SeLinuxOption(level="s0:c1,c2")
    pod = await kubelet.run(config=config)
    (tmp_path / "file").write_text("x")
    volume = pb.Mount(container_path="/data", host_path=str(tmp_path), selinux_relabel=True)
    linux = pb.LinuxContainerConfig(security_context=security(level="s0:c1,c2"))
    container = await kubelet.started(pod, linux=linux, mounts=[volume])
    (bundle,) = (node.root / "run" / "sandboxes").glob(f"*/containers/{container}")
    oci = json.loads((bundle / "config.json").read_text())
    with_selinux = selinux.mode() is not selinux.Mode.DISABLED
    assert oci["process"].get("selinuxLabel", "").endswith(":s0:c1,c2") is with_selinux
    assert ("mountLabel" in oci["linux"]) is with_selinux
    assert (selinux.ATTRIBUTE in os.listxattr(tmp_path / "file")) is with_selinux
    assert await kubelet.output(container, "cat /data/file") == "x"
    for options, field in (({"type": "a:b"}, "type"), ({"level": "top secret"}, "level"), ({"user": "x,y"}, "user")):
        with pytest.raises(CriError, match=rf"config\.linux\.security_context\.selinux_options\.{field}") as refused:
            await kubelet.create(pod, name="other", linux=pb.LinuxContainerConfig(security_context=security(**options)))
        assert refused.value.code is Status.INVALID_ARGUMENT
