"""Which places serve a reference: our own configuration, then containerd's hosts.toml, then registries.conf, then the registry itself.

The files are read at each pull, in a worker thread: they are small, and a change holds at once. A broken one fails the pull
with its name and key rather than be passed over: it may be what blocks a registry.
"""

from __future__ import annotations

from dataclasses import replace

from anyio.to_thread import run_sync

from bridge.errors import ImagePullFailed
from bridge.images import hosts_toml, places, registries_conf
from bridge.images.places import Place, Routes, TlsFiles
from bridge.images.reference import Reference
from bridge.images.settings import ImageSettings, Registry


async def route(reference: Reference, settings: ImageSettings) -> Routes:
    """The places for ``reference``, at least one. Raises ImagePullFailed when it is blocked, ConfigError for a broken file."""
    found = await run_sync(_routes, reference, settings)
    if found.blocked:
        raise ImagePullFailed(f"{reference}: {found.blocked}")
    return found


def _routes(reference: Reference, settings: ImageSettings) -> Routes:
    found = _configured(reference, settings)
    return replace(found, places=[_certified(place, settings) for place in found.places])


def _configured(reference: Reference, settings: ImageSettings) -> Routes:
    entry = settings.registries.get(reference.domain)
    if entry is not None:
        return _ours(reference, entry)
    for root in settings.hosts_dirs:
        if (found := hosts_toml.find(root, reference)) is not None:
            return found
    listed = None if settings.registries_conf is None else registries_conf.load(settings.registries_conf).routes(reference)
    return listed or Routes((places.registry(reference),))


def _ours(reference: Reference, entry: Registry) -> Routes:
    if entry.blocked:
        return Routes((), f'registry {reference.domain} is blocked by images.registries."{reference.domain}".blocked')
    tls = TlsFiles(tuple(entry.authorities), (entry.client,) if entry.client else ())
    where = f'images.registries."{reference.domain}".mirrors'
    mirrors = [replace(places.mirror(url, reference.path, where, insecure=entry.insecure), tls=tls) for url in entry.mirrors]
    return Routes((*mirrors, places.registry(reference, insecure=entry.insecure, tls=tls)))


def _certified(place: Place, settings: ImageSettings) -> Place:
    for root in settings.certificate_dirs:
        place = places.with_certificates(place, hosts_toml.certificates(root / place.host))
    return place
