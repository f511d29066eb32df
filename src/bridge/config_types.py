"""The vocabulary of the configuration schema: tables, paths below a root, numbers with a unit."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

MIB = 1 << 20
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Below:
    """Marks a path field whose relative values are taken below ``server.<root>``."""

    root: Literal["run_dir", "state_dir"]


@dataclass(frozen=True, slots=True)
class Unit:
    """Marks a number with its unit, for the documentation."""

    name: str


def _absolute(path: Path) -> Path:
    if not path.is_absolute():
        raise ValueError(f"must be an absolute path, not {str(path)!r}")
    return path


def _device(text: str) -> str:
    if not re.fullmatch(r"/[^:\0]+(:/[^:\0]+)?(:[rwm]{1,3})?", text):
        raise ValueError(f"must be HOST[:CONTAINER][:PERMISSIONS] with absolute paths and permissions of r, w and m, not {text!r}")
    return text


def _http_url(text: str) -> str:
    if text and not re.fullmatch(r"https?://(\[[0-9A-Fa-f:.]+\]|[^\s/:?#@\[\]]+)(:[0-9]{1,5})?(/[^\s?#]*)?", text):
        raise ValueError(f"must be a URL with http or https, without a user, such as http://127.0.0.1:4318/v1/traces, not {text!r}")
    return text


def _not_zero(number: int) -> int:
    if number == 0:
        raise ValueError("must be above 0, or -1 for none: nothing could run")
    return number


AbsolutePath = Annotated[Path, AfterValidator(_absolute)]
DevicePath = Annotated[str, AfterValidator(_device)]
HttpUrl = Annotated[str, AfterValidator(_http_url)]
RunPath = Annotated[Path, Below("run_dir")]
StatePath = Annotated[Path, Below("state_dir")]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False), Unit("seconds")]
Days = Annotated[float, Field(ge=0, le=3650, allow_inf_nan=False), Unit("days")]
Bytes = Annotated[int, Field(ge=1), Unit("bytes")]
PidsLimit = Annotated[int, Field(ge=-1), AfterValidator(_not_zero)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
PortOrAny = Annotated[int, Field(ge=0, le=65535)]
Mode = Annotated[int, Field(ge=0, le=0o777), Unit("mode")]


class Table(BaseModel):
    """A TOML table: frozen, and a key that it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
