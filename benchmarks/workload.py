"""Pods and containers as a kubelet asks for them: one busybox container with limits, RuntimeDefault seccomp, its own PID namespace.

Source: what kubelet 1.3x sends for a Burstable pod (pkg/kubelet/kuberuntime/kuberuntime_sandbox.go and
kuberuntime_container_linux.go): cgroup parent per pod, labels and annotations with the pod's identity, service
environment, three managed mounts (/etc/hosts, service account, termination log), log directory.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bridge._proto.runtime import v1 as cri

from .images import WORKLOAD
from .servers import Running

STOPPABLE = ("sh", "-c", 'trap "exit 0" TERM; echo ready; while :; do sleep 3600 & wait $!; done')
"""Says `ready` once its handler is set and ends with 0 as soon as SIGTERM comes, so that a stop measures the runtime alone."""

_MASKED = (
    "/proc/acpi /proc/kcore /proc/keys /proc/latency_stats /proc/timer_list /proc/timer_stats /proc/sched_debug /proc/scsi /sys/firmware"
)
_READONLY = "/proc/asound /proc/bus /proc/fs /proc/irq /proc/sys /proc/sysrq-trigger"
_SERVICE = {
    "KUBERNETES_SERVICE_HOST": "10.96.0.1",
    "KUBERNETES_SERVICE_PORT": "443",
    "KUBERNETES_SERVICE_PORT_HTTPS": "443",
    "KUBERNETES_PORT": "tcp://10.96.0.1:443",
    "KUBERNETES_PORT_443_TCP": "tcp://10.96.0.1:443",
    "KUBERNETES_PORT_443_TCP_PROTO": "tcp",
    "KUBERNETES_PORT_443_TCP_PORT": "443",
    "KUBERNETES_PORT_443_TCP_ADDR": "10.96.0.1",
}


@dataclass(frozen=True)
class Pod:
    """A pod before anybody was asked to run it: its config and the files a kubelet keeps for it."""

    server: Running
    uid: str
    files: Path
    config: cri.PodSandboxConfig

    def log(self, name: str) -> Path:
        """The log file of container ``name``."""
        return Path(self.config.log_directory) / name / "0.log"


def _seccomp() -> cri.SecurityProfile:
    return cri.SecurityProfile(profile_type=cri.SecurityProfileProfileType.RuntimeDefault)


def _namespaces() -> cri.NamespaceOption:
    return cri.NamespaceOption(network=cri.NamespaceMode.POD, pid=cri.NamespaceMode.CONTAINER, ipc=cri.NamespaceMode.POD)


def _resources() -> cri.LinuxContainerResources:
    """Requests 100m and 64Mi, limits 500m and 128Mi; the score is the kubelet's for a Burstable container of a small node."""
    return cri.LinuxContainerResources(
        cpu_period=100_000, cpu_quota=50_000, cpu_shares=102, memory_limit_in_bytes=128 << 20, oom_score_adj=985
    )


def make_pod(server: Running, number: int) -> Pod:
    """The pod with its cgroup, directories and files made, as a kubelet has them before RunPodSandbox."""
    uid = str(uuid.uuid4())
    name = f"bench-{number}"
    files = server.directory / "kubelet" / uid
    (files / "serviceaccount").mkdir(parents=True)
    (files / "etc-hosts").write_text(f"127.0.0.1\tlocalhost\n10.0.0.1\t{name}\n")
    for file in ("token", "ca.crt", "namespace"):
        (files / "serviceaccount" / file).write_text("benchmark\n")
    logs = server.directory / "logs" / f"default_{name}_{uid}"
    logs.mkdir(parents=True)
    linux = cri.LinuxPodSandboxConfig(
        cgroup_parent=server.workspace.make_pod_cgroup(server.name, uid),
        security_context=cri.LinuxSandboxSecurityContext(namespace_options=_namespaces(), seccomp=_seccomp()),
        overhead=cri.LinuxContainerResources(),
        resources=_resources(),
    )
    config = cri.PodSandboxConfig(
        metadata=cri.PodSandboxMetadata(name=name, uid=uid, namespace="default", attempt=0),
        hostname=name,
        log_directory=str(logs),
        dns_config=cri.DnsConfig(
            servers=["10.96.0.10"], searches=["default.svc.cluster.local", "svc.cluster.local", "cluster.local"], options=["ndots:5"]
        ),
        labels=_labels(name, uid),
        annotations={"kubernetes.io/config.seen": "2026-01-01T00:00:00.000000000Z", "kubernetes.io/config.source": "api"},
        linux=linux,
    )
    return Pod(server, uid, files, config)


def _labels(pod: str, uid: str, container: str = "") -> dict[str, str]:
    labels = {"io.kubernetes.pod.name": pod, "io.kubernetes.pod.namespace": "default", "io.kubernetes.pod.uid": uid, "app": "bench"}
    return {**labels, "io.kubernetes.container.name": container} if container else labels


def make_container(pod: Pod, name: str, command: Sequence[str] = STOPPABLE) -> cri.ContainerConfig:
    """The config of container ``name`` of ``pod``, its termination log and log directory made."""
    assert pod.config.metadata is not None
    termination = pod.files / f"termination-{name}"
    termination.touch()
    pod.log(name).parent.mkdir()
    mounts = [
        cri.Mount(
            container_path="/var/run/secrets/kubernetes.io/serviceaccount", host_path=str(pod.files / "serviceaccount"), readonly=True
        ),
        cri.Mount(container_path="/etc/hosts", host_path=str(pod.files / "etc-hosts")),
        cri.Mount(container_path="/dev/termination-log", host_path=str(termination)),
    ]
    security = cri.LinuxContainerSecurityContext(
        namespace_options=_namespaces(),
        no_new_privs=True,
        masked_paths=_MASKED.split(),
        readonly_paths=_READONLY.split(),
        seccomp=_seccomp(),
    )
    return cri.ContainerConfig(
        metadata=cri.ContainerMetadata(name=name, attempt=0),
        image=cri.ImageSpec(image=WORKLOAD, user_specified_image=WORKLOAD),
        command=list(command),
        envs=[cri.KeyValue(key=key, value=value.encode()) for key, value in {"HOSTNAME": pod.config.hostname, **_SERVICE}.items()],
        mounts=mounts,
        labels=_labels(pod.config.metadata.name, pod.uid, name),
        annotations={
            "io.kubernetes.container.hash": "5d0d0f2a",
            "io.kubernetes.container.restartCount": "0",
            "io.kubernetes.container.terminationMessagePath": "/dev/termination-log",
            "io.kubernetes.container.terminationMessagePolicy": "File",
            "io.kubernetes.pod.terminationGracePeriod": "30",
        },
        log_path=f"{name}/0.log",
        linux=cri.LinuxContainerConfig(resources=_resources(), security_context=security),
    )


async def run_pod(server: Running, number: int, containers: int, command: Sequence[str] = STOPPABLE) -> tuple[Pod, str, list[str]]:
    """Make and start a pod with ``containers`` containers off the clock; the pod, its sandbox's id and the containers' ids."""
    pod = make_pod(server, number)
    sandbox = await server.rpc.call("RunPodSandbox", cri.RunPodSandboxRequest(config=pod.config), cri.RunPodSandboxResponse)
    ids: list[str] = []
    for index in range(containers):
        request = cri.CreateContainerRequest(
            pod_sandbox_id=sandbox.pod_sandbox_id, config=make_container(pod, f"c{index}", command), sandbox_config=pod.config
        )
        created = await server.rpc.call("CreateContainer", request, cri.CreateContainerResponse)
        await server.rpc.call("StartContainer", cri.StartContainerRequest(container_id=created.container_id), cri.StartContainerResponse)
        ids.append(created.container_id)
    return pod, sandbox.pod_sandbox_id, ids


async def remove_pod(server: Running, sandbox: str) -> None:
    """Stop and remove a sandbox with all that is in it, off the clock."""
    await server.rpc.call("StopPodSandbox", cri.StopPodSandboxRequest(pod_sandbox_id=sandbox), cri.StopPodSandboxResponse)
    await server.rpc.call("RemovePodSandbox", cri.RemovePodSandboxRequest(pod_sandbox_id=sandbox), cri.RemovePodSandboxResponse)
