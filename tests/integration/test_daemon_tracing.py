"""Traces of a live server: what a kubelet's call did arrives at a collector, by the end of the server at the latest."""

from __future__ import annotations

import anyio
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from bridge._proto.bridge.admin import v1 as admin
from bridge._proto.runtime import v1 as pb
from bridge.client import CriError, connect
from bridge.testing.registry import registry
from tests.integration.daemon_node import IMAGE, Kubelet, daemon_node
from tests.otlp_collector import collecting, said

pytestmark = pytest.mark.root
RPC, IMAGES = "runtime.v1.RuntimeService", "runtime.v1.ImageService"


async def test_the_trace_of_a_pod_is_what_its_waterfall_shows_and_is_sent_before_the_server_ends(crun_hierarchy: None) -> None:
    with collecting() as collector:
        section = f"[tracing]\nenabled = true\nendpoint = 'http://127.0.0.1:{collector.server_port}'\nperiod = 80000"
        with daemon_node(prepare=lambda root: (section, ""), handlers={"runc": "runc"}) as node:
            async with connect(node.socket) as cri:
                kubelet = Kubelet(node, cri, "runc")
                pod = await kubelet.run()
                container = await kubelet.started(pod)
                drawn = (await cri.admin.trace(admin.TraceRequest(pod_sandbox_id=pod))).spans
                await kubelet.clean()
                with registry(node.root / "registry") as place:
                    reference = f"{place}/busybox:1"
                    await anyio.run_process(
                        ["skopeo", "copy", "-q", "--dest-tls-verify=false", f"oci:{node.root}/layout:{IMAGE}", f"docker://{reference}"]
                    )
                    await cri.image.pull_image(pb.PullImageRequest(image=pb.ImageSpec(image=reference)))
                    with pytest.raises(CriError):
                        await cri.image.pull_image(pb.PullImageRequest(image=pb.ImageSpec(image=f"{place}/absent:1")))
            assert collector.spans == [], "it is not time yet"
            assert node.stop() == 0
    found = collector.named()
    start = found[f"{RPC}/StartContainer"]
    assert (said(start)["container.id"], said(start)["cri_bridge.pod_sandbox.id"]) == (container, pod)
    assert (said(start)["cri_bridge.handler"], said(start)["rpc.grpc.status_code"]) == ("runc", 0)
    assert below(collector.spans, start) == ["StartContainer app"]
    assert "runtime" in below(collector.spans, found["StartContainer app"])
    told = {(span.trace_id.hex(), span.name) for span in collector.spans}
    assert {(span.trace_id, span.name) for span in drawn} <= told
    assert {"RunPodSandbox", "cni add", "CreateContainer app"} <= {span.name for span in drawn}
    assert collector.resource["service.name"] == "cri-bridge"
    imported = [below(collector.spans, span) for span in collector.spans if span.name == "import"]
    assert imported == [["layer", "commit"], ["commit"]], "two images with the same layer"
    good, bad = (span for span in collector.spans if span.name == f"{IMAGES}/PullImage")
    (pull,) = (span for span in collector.spans if span.parent_span_id == good.span_id)
    assert (pull.name, said(pull)["container.image.name"]) == ("pull", reference)
    assert below(collector.spans, pull) == ["resolve", "signatures", "config", "commit"], "its layer is here: imported"
    (failed,) = (span for span in collector.spans if span.parent_span_id == bad.span_id)
    assert "404" in failed.status.message
    assert below(collector.spans, failed) == ["resolve"]


def below(spans: list[Span], parent: Span) -> list[str]:
    return [span.name for span in spans if span.parent_span_id == parent.span_id]
