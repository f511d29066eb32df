"""The configuration's image store and registries."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import model_validator

from bridge.config_types import GIB, MIB, AbsolutePath, Bytes, Count, Days, Seconds, StatePath, Table


class Registry(Table):
    """How one registry host is reached; the key is its host[:port] as image names write it."""

    mirrors: list[str] = []
    """Base URLs or host[:port] tried first, in order. Why: none, ask the registry itself."""
    insecure: bool = False
    """Allow plain HTTP and any certificate. Why: images are code; only for registries on your own machine."""
    authorities: list[AbsolutePath] = []
    """PEM files with certificate authorities to trust besides the system's. Why: most registries need none."""
    client_certificate: AbsolutePath | None = None
    """PEM file with the certificate to show to the registry. Why: unset, few ask for one."""
    client_key: AbsolutePath | None = None
    """Its key; unset, when it is in the same file. Why: as tools write them."""
    blocked: bool = False
    """Refuse every pull from it. Why: nothing is blocked unless you say so."""

    @model_validator(mode="after")
    def _key_has_certificate(self) -> Self:
        if self.client_key is not None and self.client_certificate is None:
            raise ValueError("client_key: needs client_certificate")
        return self


class Images(Table):
    """The image store and pulls."""

    root: StatePath = Path("images")
    """Where blobs, layers and the containers' file systems are. Why: overlay wants them on one file system."""
    registries: dict[str, Registry] = {}
    """Settings by registry host. Why: public registries need none."""
    hosts_dirs: list[AbsolutePath] = [Path("/etc/containerd/certs.d")]
    """Directories of containerd's hosts.toml files, for registries without settings here. Why: what containerd's users have."""
    registries_conf: AbsolutePath | Literal[""] = Path("/etc/containers/registries.conf")
    """The registries.conf (version 2, with its .d directory) for registries that hosts_dirs don't know; "" for none.
    Why: what the users of CRI-O and Podman have. It is read at each pull, as the hosts.toml files are."""
    certificate_dirs: list[AbsolutePath] = [Path("/etc/containers/certs.d"), Path("/etc/docker/certs.d")]
    """Directories with one directory a registry host, holding *.crt, *.cert and *.key. Why: where Podman, CRI-O and Docker look."""
    auth_files: list[AbsolutePath] = []
    """Files of stored credentials (auth.json, Docker's config.json), used where a pull brings none; their credential helpers are asked.
    Why: every pod of the node could pull with them; the kubelet sends its own."""
    credential_helper_timeout: Seconds = 10.0
    """How long a credential helper may take. Why: those of clouds ask the network."""
    retry_after_limit: Seconds = 30.0
    """Longest wait that a busy registry (429, 503 with Retry-After) may ask for before the pull fails.
    Why: the kubelet comes back by itself, with a message that says why."""
    signature_policy: AbsolutePath | Literal[""] = ""
    """The policy.json that says which images must be signed, and by whom; "" for /etc/containers/policy.json, if it is there.
    Why: what CRI-O, Podman and skopeo read. It is read at each pull; a broken one, or an absent one that is named here, fails it."""
    signature_policy_dir: AbsolutePath | Literal[""] = Path("/etc/cri-bridge/policies")
    """Directory of policies for the pods of one namespace, NAMESPACE.json, instead of the node's; "" for none.
    Why: empty unless you put one there; CRI-O's files can be used as they are."""
    registries_d: AbsolutePath | Literal[""] = Path("/etc/containers/registries.d")
    """Directory of *.yaml files that say where signatures lie (lookaside, use-sigstore-attachments); "" for none.
    Why: what CRI-O, Podman and skopeo read, when a policy asks for signatures."""
    pinned: list[str] = []
    """Glob patterns of image names that are never garbage-collected. Why: the server itself needs no image."""
    parallel_downloads: Count = 4
    """Layers that are fetched and unpacked at once, over all pulls. Why: fills a link, and unpacking is bound by the disk."""
    stall_timeout: Seconds = 30.0
    """A download that brings no byte for so long is broken off and resumed. Why: a dead connection gives no error."""
    minimum_rate: Bytes = 1024
    """Bytes a second below which a download is a trickle, and broken off and resumed. Why: a byte now and then holds a place for ever."""
    minimum_rate_window: Seconds = 60.0
    """Over how long a rate is measured. Why: a busy registry may pause. Time in which the disk is waited for does not count."""
    abandoned_pull_timeout: Seconds = 600.0
    """How long a pull goes on after the last who waits for it has left. Why: the kubelet gives up, and comes back for the same image.
    What a failed pull has fetched is kept for as long."""
    max_manifest: Bytes = 4 * MIB
    """Largest manifest, index or config accepted. Why: the limit that registries use."""
    max_layer: Bytes = 64 * GIB
    """Largest unpacked layer accepted. Why: above the largest model images, below what fills a disk by accident."""
    max_layer_files: Count = 4_000_000
    """Most entries in one layer. Why: a bomb of empty files eats inodes, not bytes."""
    verify_interval: Days = 0.0
    """Read every layer again once in so many days and compare it with its digests; 0 for never. What is damaged is pulled again.
    Why: it reads the whole store; `cri-bridge image check --full` does it when you want."""
    verify_rate: Bytes = 32 * MIB
    """Bytes a second that this may read. Why: a tenth of what a slow SSD gives."""
