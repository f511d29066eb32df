"""Reading the configuration: TOML files and conf.d directories into one valid ``Config``.

Later files override earlier ones: tables merge key by key, everything else (lists too) is replaced. Whatever is wrong
is said with the file and the key it came from and, for an unknown key, the nearest name that exists. All faults are
reported at once, so that an administrator edits once.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from bridge.config import Config
from bridge.errors import ConfigError

DEFAULT_PATHS = (Path("/etc/cri-bridge/config.toml"), Path("/etc/cri-bridge/conf.d"))
"""Read when no path is given; either may be absent."""

Key = tuple[str, ...]
_NO_ORIGIN = "default"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration, the files it was read from, and for every key that a file set, the last file that set it."""

    config: Config
    files: Sequence[Path] = ()
    origins: Mapping[Key, Path] = field(default_factory=dict)


def load(paths: Sequence[Path] | None = None) -> Config:
    """The configuration of ``paths`` (files, or directories of ``*.toml``); None means DEFAULT_PATHS. Raises ConfigError."""
    return read(paths).config


def read(paths: Sequence[Path] | None = None) -> Loaded:
    """As ``load``, with the origin of every value."""
    files = list(_files(paths))
    values: dict[str, Any] = {}
    origins: dict[Key, Path] = {}
    for path in files:
        _merge(values, _parse(path), path, origins, ())
    try:
        config = Config.model_validate(values)
    except ValidationError as exc:
        faults = exc.errors(include_url=False, include_context=False)
        raise ConfigError("\n".join(_explain(fault, origins) for fault in faults)) from exc
    return Loaded(config, tuple(files), origins)


def _files(paths: Sequence[Path] | None) -> Iterator[Path]:
    """The files to read, in order; directories give their ``*.toml`` by name. A named path must exist, a default one need not."""
    for path in DEFAULT_PATHS if paths is None else paths:
        if path.is_dir():
            yield from sorted(entry for entry in path.glob("*.toml") if entry.is_file())
        elif paths is not None or path.exists():
            yield path


def _parse(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{path}: not UTF-8 text: {exc.reason} at byte {exc.start}") from exc
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"{path}: not TOML: {exc}") from exc


def _merge(into: dict[str, Any], new: Mapping[str, Any], path: Path, origins: dict[Key, Path], at: Key) -> None:
    for name, value in new.items():
        key = (*at, name)
        old = into.get(name)
        if isinstance(value, dict) and (old is None or isinstance(old, dict)):
            into[name] = {} if old is None else old
            origins.setdefault(key, path)
            _merge(into[name], value, path, origins, key)
        else:
            for stale in [known for known in origins if known[: len(key)] == key]:
                del origins[stale]
            into[name] = value
            origins[key] = path


def _explain(fault: ErrorDetails, origins: Mapping[Key, Path]) -> str:
    """One line: file, dotted key, what is wrong, and the nearest right name when the key is unknown."""
    key = tuple(str(part) for part in fault["loc"])
    origin = next((str(origins[key[:n]]) for n in range(len(key), 0, -1) if key[:n] in origins), _NO_ORIGIN)
    where = f"{origin}: {dotted(key)}"
    match fault["type"]:
        case "extra_forbidden":
            near = nearest(key)
            return f"{where}: unknown key; " + (f"did you mean {near}?" if near else f"there are: {', '.join(_names_at(key[:-1]))}")
        case "missing":
            return f"{where}: required, but not set"
        case "value_error":
            return f"{where}: {fault['msg'].removeprefix('Value error, ')}"
        case _:
            message = fault["msg"].removeprefix("Input ")
            return f"{where}: {message[:1].lower()}{message[1:]}, not {fault['input']!r}"


def dotted(key: Key) -> str:
    """``key`` as TOML writes it: parts that are not bare are quoted."""
    return ".".join(part if part and part.isascii() and part.replace("_", "").replace("-", "").isalnum() else f'"{part}"' for part in key)


def nearest(key: Key) -> str | None:
    """The full dotted name that the unknown ``key`` most likely means: the same name elsewhere, a neighbour, anything."""
    everywhere = {known[-1]: known for known in all_keys()}
    if key[-1] in everywhere:
        return dotted(everywhere[key[-1]])
    found = difflib.get_close_matches(key[-1], _names_at(key[:-1]), n=1)
    if found:
        return dotted((*key[:-1], found[0]))
    found = difflib.get_close_matches(key[-1], everywhere, n=1, cutoff=0.75)
    return dotted(everywhere[found[0]]) if found else None


def all_keys() -> Iterator[Key]:
    """Every fixed key of the schema (``server.socket``, …); the free names of handlers and registries are left out."""
    for section, info in Config.model_fields.items():
        yield (section,)
        model = _model_of(info.annotation)
        yield from ((section, name) for name in (model.model_fields if model else ()))


def _names_at(at: Key) -> Sequence[str]:
    """The keys that exist below ``at``, walking through free names such as a handler's."""
    model: type[BaseModel] | None = Config
    free = False
    for part in at:
        if free:
            free = False
            continue
        if model is None or part not in model.model_fields:
            return ()
        annotation = model.model_fields[part].annotation
        free = getattr(annotation, "__origin__", None) is dict
        model = _model_of(annotation)
    return tuple(model.model_fields) if model is not None and not free else ()


def _model_of(annotation: Any) -> type[BaseModel] | None:
    """The model in ``annotation``, also when it is the value type of a dict."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None
