"""Signature policies through the whole server: what the kubelet is told, and containers of a namespace with a policy of its own."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import tempfile
from collections.abc import Awaitable, Iterator
from pathlib import Path

import anyio
import pytest
from grpclib import Status

from bridge._proto.runtime import v1 as pb
from bridge.client import CriError, connect
from bridge.config_docs import toml_value
from tests.conftest import LeakAudit
from tests.integration import signing_node
from tests.integration.daemon_fixtures import warm
from tests.integration.daemon_node import IMAGE, DaemonNode, Kubelet, daemon_node
from tests.integration.registry_node import REGISTRY, push, registry
from tests.integration.signing_node import COSIGN, claim

pytestmark = [pytest.mark.root, pytest.mark.skipif(not REGISTRY.exists(), reason="needs Debian's docker-registry")]


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as directory, registry(Path(directory) / "registry") as host:
        yield host


@pytest.fixture(scope="module")
def node(crun_hierarchy: None, hub: str) -> Iterator[DaemonNode]:
    """A server whose policy wants ``hub``'s images signed, and stricter ones for the namespace strict."""

    def prepare(root: Path) -> tuple[str, str]:
        (root / "policies").mkdir()
        (root / "registries.d").mkdir()
        (root / "registries.d" / "all.yaml").write_text("default-docker: {use-sigstore-attachments: true}")
        requirement = {"type": "sigstoreSigned", "keyPath": f"{root}/node.pub", "signedIdentity": {"type": "matchRepository"}}
        accept = [{"type": "insecureAcceptAnything"}]
        policy = {"default": [{"type": "reject"}], "transports": {"docker": {f"{hub}/open": accept, f"{hub}/signed": [requirement]}}}
        (root / "policy.json").write_text(json.dumps(policy))
        (root / "policies" / "strict.json").write_text(json.dumps({"default": [requirement]}))
        paths = {"signature_policy": "policy.json", "signature_policy_dir": "policies", "registries_d": "registries.d"}
        return "\n".join(["[images]", *(f"{key} = {toml_value(root / name)}" for key, name in paths.items())]), ""

    with daemon_node(handlers={"runc": "runc"}, prepare=prepare) as made:
        for name in ("open/app", "signed/app", "other/app"):
            anyio.run(push, made.root / "layout", IMAGE, hub, f"{name}:v1")
        anyio.run(warm, made)
        yield made


def pull_request(name: str, namespace: str = "") -> pb.PullImageRequest:
    pod = pb.PodSandboxConfig(metadata=pb.PodSandboxMetadata(name="p", namespace=namespace, uid="u")) if namespace else None
    return pb.PullImageRequest(image=pb.ImageSpec(image=name), sandbox_config=pod)


def sign(node: DaemonNode, hub: str, repository: str) -> None:
    key = signing_node.sigstore_key()
    (node.root / "node.pub").write_bytes(signing_node.public_pem(key))
    digest = signing_node.head(hub, repository, "v1")
    payload = claim(COSIGN, f"{hub}/{repository}", digest, optional=None)
    signing_node.attach(hub, repository, digest, [(payload, signing_node.signed(payload, key))])


async def refused(call: Awaitable[object]) -> str:
    """What the kubelet sees: for code UNKNOWN it compares how the message begins."""
    with pytest.raises(CriError) as caught:
        await call
    assert caught.value.code is Status.UNKNOWN
    return caught.value.message


async def test_refused_pulls_and_containers(node: DaemonNode, hub: str, leak_audit: LeakAudit) -> None:
    leak_audit.watch(dataclasses.replace(node.scope(), pids=[]))  # a connection to the registry is kept for the next pull
    sign(node, hub, "other/app")  # so that the key is there
    async with connect(node.socket) as cri:
        kubelet = Kubelet(node, cri, "runc")
        before = sorted(image.id for image in (await cri.image.list_images()).images)
        for name, why in (("other/app", "default[0]: reject"), ("signed/app", "there is no sigstore signature")):
            message = await refused(cri.image.pull_image(pull_request(f"{hub}/{name}:v1")))
            assert message.startswith("SignatureValidationFailed: ")
            assert why in message
            assert (await cri.image.image_status(pb.ImageStatusRequest(image=pb.ImageSpec(image=f"{hub}/{name}:v1")))).image is None
        message = await refused(cri.image.pull_image(pull_request(f"{hub}/open/app:v1", "strict")))
        assert message.startswith(f"SignatureValidationFailed: {hub}/open/app:v1 ")
        assert f"{node.root}/policies/strict.json: default[0]" in message
        assert sorted(image.id for image in (await cri.image.list_images()).images) == before
        image = (await cri.image.pull_image(pull_request(f"{hub}/open/app:v1", "lax"))).image_ref
        spec = pb.ImageSpec(image=image, user_specified_image=f"{hub}/open/app:v1")
        lax = await kubelet.run(config=kubelet.pod_config("lax", metadata=pb.PodSandboxMetadata(name="lax", namespace="lax", uid="1")))
        strict_name = pb.PodSandboxMetadata(name="strict", namespace="strict", uid="2")
        strict = await kubelet.run(config=kubelet.pod_config("strict", metadata=strict_name))
        assert await kubelet.output(await kubelet.started(lax, image=spec), "echo here") == "here"
        message = await refused(kubelet.create(strict, image=spec))
        assert message.startswith("SignatureValidationFailed: ")
        volume = pb.Mount(container_path="/v", image=spec, readonly=True)
        sign(node, hub, "signed/app")
        signed = (await cri.image.pull_image(pull_request(f"{hub}/signed/app:v1", "strict"))).image_ref
        good = pb.ImageSpec(image=signed, user_specified_image=f"{hub}/signed/app:v1")
        message = await refused(kubelet.create(strict, image=good, mounts=[volume]))
        assert message.startswith("ImageVolumeMountFailed: config.mounts[0]")
        assert "SignatureValidationFailed: " in message
        mount = pb.Mount(container_path="/v", image=good, readonly=True)
        container = await kubelet.started(strict, name="good", image=good, mounts=[mount])
        assert await kubelet.output(container, "test -e /v/bin/busybox && echo there") == "there"
        await kubelet.clean()


def test_skopeo_reads_these_files_too(node: DaemonNode, hub: str, tmp_path: Path) -> None:
    assert shutil.which("skopeo") is not None
    for name, refusal in (("open/app", ""), ("other/app", "rejected")):
        words = signing_node.skopeo(tmp_path, node.root / "policy.json", node.root / "registries.d", f"{hub}/{name}:v1")
        assert (refusal in words) if refusal else words == ""
    assert subprocess.run(["skopeo", "--version"], check=True, capture_output=True).stdout
