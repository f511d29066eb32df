"""``plugin = "oci"``: a handler on any OCI command line, whose differences from runc's are options instead of code."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from bridge.oci.backend import open_backend
from bridge.oci.dialect import Dialect, ExecCgroup, Flags, Launch, Scope
from bridge.oci.options import CliOptions
from bridge.oci.options import settings as settings_of
from bridge.plugins import RuntimePlugin, hookimpl
from bridge.ports.host import HostContext
from bridge.ports.runtime import Ability, RuntimeBackend

Verb = Literal[
    "run", "create", "start", "exec", "delete", "kill", "state", "update", "features", "pause", "resume", "checkpoint", "restore"
]
Word = Annotated[str, Field(min_length=1)]
_START_CODES = {"not-found": 127, "not-executable": 126}


class FlagOptions(BaseModel):
    """How the runtime spells a flag: `--flag` takes its value as the next argument, `--flag=` as part of its own, "" is not there."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bundle: Word = "--bundle"
    """Of `run` or `create`: the bundle's directory. Why: runc's."""
    pid_file: Word = "--pid-file"
    """Of `run` or `create`, and of `exec`: where the pid is written; the monitor can't do without. Why: runc's."""
    process: Word = "--process"
    """Of `exec`: the file with the OCI process object. Why: runc's."""
    console: str = "--console-socket"
    """Of `run` or `create`, and of `exec`: the socket that gets the terminal. Why: runc's; "" leaves the handler without terminals."""
    detach: str = "--detach"
    """Of `run` and of `exec`: return when it runs. Why: runc's; "" for a runtime that always does."""
    force: str = "--force"
    """Of `delete`: kill it first. Why: runc's; with "" a container is killed with `kill` before it is deleted."""
    resources: str = "--resources"
    """Of `update`: the file with the new limits. Why: runc's; with "" limits can't be changed after the start."""
    cgroup: str = "--cgroup"
    """Of `exec`: the sub-cgroup that its process joins. Why: that of runc and crun; see `exec_cgroup`."""
    images: Word = "--image-path"
    """Of `checkpoint` and `restore`: the directory of the processes' images. Why: runc's and crun's."""
    work: Word = "--work-path"
    """Of `checkpoint` and `restore`: the directory of CRIU's logs. Why: runc's and crun's."""
    running: Word = "--leave-running"
    """Of `checkpoint`: the container lives on. Why: runc's and crun's."""


class OciOptions(CliOptions):
    """What `[runtime.handlers.NAME.options]` may hold for a handler with `plugin = "oci"`. Only ``path`` must be set."""

    launch: Literal["run", "create"] = "run"
    """The verbs that start a container: `run`, or `create` and then `start`.
    Why: one invocation is quicker; the OCI specification knows `create` and `start` alone."""
    root_args: tuple[str, ...] = ("--root", "{root}")
    """Global arguments that name the state directory. Why: runc's; `[]` for a runtime that has its own."""
    state_dir: str = "{root}/{id}"
    """What exists as long as the runtime knows container {id}. Why: so it is with runc, crun and youki; "" asks `state` instead."""
    log_args: tuple[str, ...] = ("--log", "{log}", "--log-format", "json")
    """Global arguments that name a file for messages, as JSON or text lines. Why: runc's; with `[]` stderr alone is read."""
    systemd_args: tuple[str, ...] = ("--systemd-cgroup",)
    """Global arguments for the systemd cgroup driver. Why: runc's; `[]` for a runtime that sees it by the cgroup's path."""
    rootless: Literal["auto", "true", "false"] | None = None
    """Adds the global argument `--rootless=…`. Why: unset, as the server runs as root and runtimes see that."""
    version_args: tuple[str, ...] = ("--version",)
    """Arguments that print the version. Why: runc's; `[]` for a runtime that can't."""
    features: bool = True
    """Whether the verb `features` may be asked. Why: one that lacks it fails harmlessly; false for one where asking has effects."""
    verbs: dict[Verb, str] = {}
    """Verbs with another name: `{delete = "rm"}`. Why: none."""
    verb_args: dict[Verb, tuple[str, ...]] = {}
    """Further arguments right behind a verb: `{exec = ["--ignore-paused"]}`. Why: none are needed."""
    flags: FlagOptions = FlagOptions()
    """Flags with another spelling. Why: none."""
    exec_cgroup: Literal["auto", "controller", "path", "none"] = "auto"
    """What the `cgroup` flag of `exec` takes on cgroup v1: `freezer:NAME` (runc), a path (crun), or there is no such flag.
    Why: auto reads it from `exec --help`."""
    start_exit_codes: dict[int, Literal["not-found", "not-executable"]] = {}
    """Exit codes of a failed start that tell why. Why: none; the messages of runc, crun and youki are understood."""
    abilities: dict[Ability, bool] = {}
    """What the runtime can or can't do, whatever it says: `{exec = false, seccomp = true}`.
    Why: unset, as `features` and a trial container find out; those that can be tried are tried all the same."""
    trial: bool = True
    """Whether opening the handler runs a trial container with a native program.
    Why: it is the only honest answer to "does it work here?"; false for a runtime of other programs, such as WebAssembly modules."""
    annotations: dict[str, str] = {}
    """Annotations for the spec of each container, for example `{"run.oci.handler" = "wasm"}`; they win over the pod's. Why: none."""
    annotate: tuple[Literal["containers", "pause", "trial"], ...] = ("containers",)
    """Which specs get them: containers', pause processes', the trial's. Why: the latter two are native programs."""

    @model_validator(mode="after")
    def _known_words(self) -> Self:
        for name, words, known in (
            ("root_args", self.root_args, {"root": "x"}),
            ("log_args", self.log_args, {"log": "x"}),
            ("state_dir", (self.state_dir,), {"root": "x", "id": "x"}),
        ):
            for word in words:
                try:
                    word.format(**known)
                except (KeyError, IndexError, ValueError) as exc:
                    raise ValueError(f"{name}: {word!r} may name {', '.join('{' + each + '}' for each in known)} alone") from exc
        if self.state_dir and not self.state_dir.startswith(("/", "{root}")):
            raise ValueError("state_dir: must begin with / or {root}")
        return self


def dialect(options: OciOptions) -> Dialect:
    """The SDK's words for these options."""
    return Dialect(
        launch=Launch(options.launch),
        flags=Flags(**options.flags.model_dump()),
        root=options.root_args,
        systemd=options.systemd_args,
        log=options.log_args,
        verbs={str(verb): name for verb, name in options.verbs.items()},
        verb_args={str(verb): words for verb, words in options.verb_args.items()},
        version=options.version_args,
        features=options.features,
        state_dir=options.state_dir,
        exec_cgroup=None if options.exec_cgroup == "auto" else ExecCgroup(options.exec_cgroup),
        start_codes={code: _START_CODES[why] for code, why in options.start_exit_codes.items()},
        trial=options.trial,
        abilities=options.abilities,
        annotations=options.annotations,
        annotated=frozenset(map(Scope, options.annotate)),
    )


def open_handler(name: str, options: OciOptions, context: HostContext) -> AbstractAsyncContextManager[RuntimeBackend]:
    """Open handler ``name``. Raises ConfigError when there is no such binary."""
    made = settings_of(name, options, context, dialect(options))
    if options.rootless is not None:
        made = replace(made, global_args=(*made.global_args, f"--rootless={options.rootless}"))
    return open_backend(made, context)


@hookimpl
def bridge_register_runtime() -> RuntimePlugin:
    """Announce the runtime."""
    return RuntimePlugin(name="oci", options=OciOptions, open=open_handler, api=1)
