"""The composition root: makes every part, joins them, and takes them down again. The only module that knows all classes.

Start: database and images → monitor → handlers → network → core → socket (List is answered from here on) → recovery →
READY. SIGTERM: stop accepting, let flights land, cancel the rest, leave; containers go on. SIGHUP: the configuration is read
again, its handlers serve the next pods, and disabled ones are tried again.
"""

from __future__ import annotations

import fcntl
import gc
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import IO

import anyio
from anyio.to_thread import run_sync

from bridge import daemon_settings as settings_of
from bridge import log
from bridge.aio import Supervisor
from bridge.api.admin import AdminRpcs
from bridge.api.images import ImageRpcs
from bridge.api.runtime import NodeView, RuntimeRpcs
from bridge.api.server import GrpcServer
from bridge.config import Config
from bridge.core import cdi, cdi_spec, event_times, hooks
from bridge.core.injections import Sources
from bridge.core.services import Ports, Services, assemble
from bridge.core.state_file import open_state
from bridge.core.store import Store
from bridge.daemon_leaving import leave_after, stop_early
from bridge.daemon_metrics import told as metrics_told
from bridge.daemon_reload import close_retired, close_unused, needing_restart, with_handlers_of
from bridge.daemon_settings import Host
from bridge.daemon_status import InForce, NodeDetails, tell_plugins
from bridge.daemon_tracing import traced
from bridge.daemon_watchdog import beat
from bridge.errors import BridgeError, HostError
from bridge.handler_retries import keep_trying
from bridge.handlers import HandlerRegistry, open_handlers
from bridge.host import facts, files, selinux, stalls, staticroot, syscalls
from bridge.host.cgroup_paths import CgroupDriver
from bridge.host.database import Database
from bridge.host.service_manager import ServiceManager, reloading
from bridge.host.watched_files import WatchedFiles
from bridge.images.store import ImageStore
from bridge.monitor.link import MonitorLink
from bridge.network.cni import Cni
from bridge.plugins import Plugins
from bridge.ports.host import HostContext, PauseProcess
from bridge.streaming.server import StreamServer
from bridge.streaming.serving import CoreSessions

_logger = log.get("daemon")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def run(config: Config, read: Callable[[], Config], watched: Callable[[Awaitable[None]], Awaitable[None]] = lambda work: work) -> int:
    """``cri-bridge serve``: run until SIGTERM or SIGINT. Returns the process's exit code.

    ``read`` reads the configuration again, for SIGHUP. ``watched`` runs the whole of it, for tests.
    """
    log.setup(config.server.log_level)
    syscalls.use_one_malloc_arena()
    try:
        anyio.run(lambda: watched(_serve(config, read)))
    except BridgeError as exc:
        _logger.error("can't start: %s", exc)
        return 1
    return 0


async def _serve(config: Config, read: Callable[[], Config]) -> None:
    failure: BridgeError | None = None
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async with anyio.create_task_group() as whole:
            starting = anyio.CancelScope()
            whole.start_soon(stop_early, signals, starting, whole.cancel_scope, _patience(config), name="signals amid the start")
            try:
                await _until_stopped(config, read, signals, starting)
            except BridgeError as exc:  # raised below: the group would wrap it
                failure = exc
            whole.cancel_scope.cancel()
    if failure is not None:
        raise failure


def _patience(config: Config) -> float:
    return config.server.shutdown_timeout + config.server.undo_timeout


async def _until_stopped(
    config: Config, read: Callable[[], Config], signals: AsyncIterator[signal.Signals], starting: anyio.CancelScope
) -> None:
    began, manager = time.monotonic(), ServiceManager.of(os.environ)
    async with running(config, manager) as daemon:
        starting.cancel()
        gc.collect()
        gc.freeze()  # modules and code stay for ever: 50 000 objects that no later collection need look at
        gc.enable()  # off since the process began (bridge.__main__)
        manager.announce("READY=1")
        _logger.info("ready after %.0f ms", (time.monotonic() - began) * 1000)
        async with anyio.create_task_group() as reloads:
            async for number in signals:
                if number != signal.SIGHUP:
                    break
                reloads.start_soon(_reload, daemon, read, manager, name="reload")
            leave_after(_patience(config))  # also when a reload hangs in a thread, which nothing cancels
            reloads.cancel_scope.cancel()
        _logger.info("%s: shutting down; containers go on", signal.Signals(number).name)
        manager.announce("STOPPING=1")
        await daemon.wind_down(config.server.shutdown_timeout)


async def _reload(daemon: Daemon, read: Callable[[], Config], manager: ServiceManager) -> None:
    try:
        await run_sync(manager.announce, *reloading())
        try:
            await daemon.reload(read)
        finally:
            with anyio.CancelScope(shield=True):
                await run_sync(manager.announce, "READY=1")
    except Exception as exc:  # it would be raised amid the wait for signals, which would end the server
        _logger.error("SIGHUP: the reload was broken off; another one may mend it", exc_info=exc)


class Daemon:
    """The running parts."""

    def __init__(self, core: Services, handlers: HandlerRegistry, server: GrpcServer, in_force: InForce) -> None:
        self.core = core
        self.handlers = handlers
        self.server = server
        self._in_force = in_force

    async def reload(self, read: Callable[[], Config]) -> None:
        """SIGHUP: the handlers as ``read`` gives them serve the next pods, all of them or, when one is wrong, none. Never raises for it."""
        try:
            fresh = await run_sync(read)
            done = await self.handlers.reload(settings_of.handlers(fresh), fresh.runtime.default_handler)
        except BridgeError as exc:
            for line in str(exc).splitlines():
                _logger.error("SIGHUP: the configuration stays as it was: %s", line)
        else:
            _logger.info("SIGHUP: %s", done)
            later = needing_restart(self._in_force.config, fresh)
            if later:
                _logger.warning("SIGHUP: a restart is needed to put in force: %s", ", ".join(later))
            self._in_force.config = with_handlers_of(self._in_force.config, fresh)
        await self.handlers.reprobe()
        _logger.info("SIGHUP: the disabled handlers were tried again, base specs were read")
        close_unused(self.core.store, self.handlers)

    async def wind_down(self, grace: float) -> None:
        """Let calls and flights end within ``grace`` seconds, then cancel them and let their undo steps run."""
        with anyio.move_on_after(grace):
            await self.server.close(grace=grace)
            await self.core.settle()
        self.core.cancel()
        await self.core.settle()


@asynccontextmanager
async def running(config: Config, manager: ServiceManager | None = None) -> AsyncIterator[Daemon]:
    """The whole server, serving on its socket with recovery done, until the block ends. Raises BridgeError when it can't start."""
    manager = manager or ServiceManager()
    async with AsyncExitStack() as stack:
        host = await _prepare(config, stack)
        sources = await stack.enter_async_context(_sources(config))  # outlives the tasks that watch them
        supervisor = await stack.enter_async_context(Supervisor())
        database = await open_state(config.server.state_dir, config.server.run_dir)
        stack.push_async_callback(database.close)
        images = await stack.enter_async_context(ImageStore.open(settings_of.images(config), supervisor))
        link = await stack.enter_async_context(MonitorLink.open(settings_of.link(config), supervisor, manager))
        plugins = Plugins()
        plugins.load_entry_points()
        handlers = await stack.enter_async_context(_handlers(config, host, link, plugins))
        network = await stack.enter_async_context(Cni.open(settings_of.network(config), supervisor))
        core = await _core(config, host, database, Ports(handlers, network, images), supervisor, sources)
        await core.events.times.resume(config.server.run_dir / event_times.NAME, host.boot_id)
        supervisor.spawn("watch CDI specs", sources.cdi.keep)
        supervisor.spawn("watch hooks", sources.hooks.keep)
        supervisor.spawn("stalls", stalls.watch)
        supervisor.spawn("watchdog", lambda: beat(manager))
        supervisor.spawn("disabled handlers", lambda: keep_trying(handlers, plugins))
        supervisor.spawn("retired handlers", lambda: close_retired(core.store, handlers))
        supervisor.spawn("plugin events", lambda: tell_plugins(core.store, plugins))
        streams = await stack.enter_async_context(StreamServer.open(settings_of.streaming(config), _sessions(config, core)))
        in_force = InForce(config)
        server = await stack.enter_async_context(_server(in_force, host, core, images, link, streams, plugins))
        await stack.enter_async_context(traced(settings_of.tracing(config), core, images, server))
        await stack.enter_async_context(metrics_told(config, core, images, link, streams, server))
        await server.listen(config.server.socket, mode=config.server.socket_mode, group=config.server.socket_group)
        await core.recovery.run()
        yield Daemon(core, handlers, server, in_force)


async def _prepare(config: Config, stack: AsyncExitStack) -> Host:
    for directory in (config.server.state_dir, config.server.run_dir):
        await files.make_dir(directory, 0o711)
    await files.make_dir(config.server.run_dir / "runtimes", 0o700)
    for directory in dict.fromkeys((config.server.state_dir, config.server.run_dir)):
        stack.push(await run_sync(_lock, directory / "lock"))
    root = config.server.run_dir / "pause"
    binary = await staticroot.make(root, config.runtime.pause_binaries)
    boot_id = (await files.read_text(_BOOT_ID)).strip()
    pause = settings_of.pause_process(root, binary)
    mode = await run_sync(selinux.mode)
    found = await run_sync(facts.gather)
    syscalls.raise_nofile()  # three for each container: see bridge.monitor.keeping
    return Host(found, boot_id, pause, mode, await run_sync(_selinux, config, mode, pause))


def _selinux(config: Config, mode: selinux.Mode, pause: PauseProcess | None) -> selinux.Contexts | None:
    """The contexts for pods; the pause binary, which all pods share, becomes readable to all."""
    contexts = settings_of.selinux(config, mode, selinux.contexts())
    if contexts is not None and pause is not None:
        selinux.label_all([pause.rootfs, *pause.rootfs.rglob("*")], contexts.shared_file)
    if mode is not selinux.Mode.DISABLED:
        _logger.info("SELinux is %s; pods get %s", mode, f"labels such as {contexts.process}" if contexts else "no labels")
    return contexts


def _lock(path: Path) -> IO[bytes]:
    """Held until the process ends: two servers over one state, or one run directory, would undo each other's work."""
    try:
        handle = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b")
    except OSError as exc:
        raise HostError(f"can't open {path}: {exc.strerror}") from exc
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        handle.close()
        raise HostError(f"another cri-bridge server uses {path.parent}") from exc
    return handle


@asynccontextmanager
async def _handlers(config: Config, host: Host, link: MonitorLink, plugins: Plugins) -> AsyncIterator[HandlerRegistry]:
    context = HostContext(
        monitor=link.client,
        state_root=config.server.run_dir / "runtimes",
        run_root=config.server.run_dir,
        cache_dir=config.server.state_dir / "cache",
        cgroup_driver=settings_of.cgroup_driver(config, host.facts),
        pause=host.pause,
        timeouts=settings_of.timeouts(config),
    )
    configured = settings_of.handlers(config)
    async with open_handlers(plugins, configured, default=config.runtime.default_handler, context=context) as handlers:
        yield handlers


@asynccontextmanager
async def _sources(config: Config) -> AsyncIterator[Sources]:
    runtime = config.runtime
    async with WatchedFiles.open(runtime.cdi_spec_dirs, cdi_spec.ENDINGS, cdi.parse_all) as specs:
        async with WatchedFiles.open(runtime.hooks_dirs, hooks.ENDINGS, hooks.parse_all) as found:
            yield Sources(specs, found)


async def _core(config: Config, host: Host, database: Database, ports: Ports, supervisor: Supervisor, sources: Sources) -> Services:
    store = Store(database)
    await store.load()
    return assemble(store, ports, settings_of.core(config, host), host.facts, settings_of.spec(config, host), supervisor, sources)


def _sessions(config: Config, core: Services) -> CoreSessions:
    return CoreSessions(core.streams, idle_timeout=config.streaming.idle_timeout, drain=config.runtime.exec_drain_timeout)


def _server(
    in_force: InForce, host: Host, core: Services, images: ImageStore, link: MonitorLink, streams: StreamServer, plugins: Plugins
) -> GrpcServer:
    config = in_force.config
    systemd = settings_of.cgroup_driver(config, host.facts) is CgroupDriver.SYSTEMD
    details = NodeDetails(
        in_force,
        core.ports,
        link,
        core.lookups.statistics,
        images.progress,
        streams,
        core.load,
        selinux={"mode": host.selinux_mode, "labels": host.selinux is not None},
    )
    node = NodeView(systemd_cgroups=systemd, mount_copies=host.facts.mount_copies, health=details.health, details=details.info)
    admin = AdminRpcs(core, images, plugins.adjustments)
    return GrpcServer(
        [RuntimeRpcs(core, node, streams), ImageRpcs(images, core.ports.handlers), admin], max_message=config.server.max_message
    )
