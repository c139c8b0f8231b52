"""How values are written: sizes, durations, addresses, paths, origins, URLs, lists; text in, value out; pure.

Every value may also stand as text (`"64MiB"`, `"true"`, `"0.5"`), and text means the same in the file and in the
environment.
"""

from __future__ import annotations

import ipaddress
import json
import re
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB
TIB: Final = 1024 * GIB
MINUTE: Final = 60.0
HOUR: Final = 3600.0
DAY: Final = 86400.0

SOCKET_PATH_BYTES_MAX: Final = 107  # sun_path of Linux, less its closing zero
PORT_MAX: Final = 65535

_SIZE_UNITS: Final = {"TiB": TIB, "GiB": GIB, "MiB": MIB, "KiB": KIB}
_SIZES: Final = {name.lower(): unit for name, unit in _SIZE_UNITS.items()} | {
    "": 1,
    "b": 1,
    "kb": 1000,
    "mb": 1000**2,
    "gb": 1000**3,
    "tb": 1000**4,
}
_DURATIONS: Final = {"": 1.0, "ms": 0.001, "s": 1.0, "m": MINUTE, "h": HOUR, "d": DAY}
_NUMBER_AND_UNIT: Final = re.compile(r"([0-9]{1,15})(?:\.([0-9]{1,9}))? *([A-Za-z]*)")
_WHOLE: Final = re.compile(r"-?[0-9]{1,3}(_?[0-9]{1,3}){0,5}")
_PORT: Final = re.compile(r"[0-9]{1,5}")
_HOST: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?")
_PATH: Final = re.compile(r"/[!-~]*")
_ORIGIN: Final = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(:[0-9]{1,5})?")


class Unfit(ValueError):
    """A value that its setting cannot take; its text is the reason, to follow `key = value: `."""


class Address(msgspec.Struct, frozen=True):
    """Where a server listens: a host and a port, or the path of a Unix socket."""

    host: str = ""
    """Without brackets; empty for a Unix socket."""
    port: int = 0
    """0 takes any free port."""
    path: str = ""
    """Of a Unix socket; empty for TCP."""
    ipv6: bool = False
    """The host is an IPv6 literal."""

    def __str__(self) -> str:
        """Write it as the configuration does."""
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if self.ipv6 else f"{self.host}:{self.port}"


def parse_size(raw: object) -> int:
    """Read bytes: an int, or text such as `64MiB`, `1.5GiB` (powers of 1024) or `500KB` (of 1000)."""
    unreadable = Unfit('is not a size; write "64MiB", "500KB" or a number of bytes')
    if isinstance(raw, bool) or not isinstance(raw, int | str):
        raise unreadable
    if isinstance(raw, int):
        return raw
    match = _NUMBER_AND_UNIT.fullmatch(raw.strip())
    if match is None or match[3].lower() not in _SIZES:
        raise unreadable
    fraction = match[2] or ""
    size, rest = divmod(int(match[1] + fraction) * _SIZES[match[3].lower()], int("1" + "0" * len(fraction)))
    if rest:
        raise Unfit("is not a whole number of bytes")
    return size


def format_size(size: int) -> str:
    """Write bytes as TOML: in the largest unit that leaves a whole number, else as plain digits."""
    for name, unit in _SIZE_UNITS.items():
        if size and size % unit == 0:
            return f'"{size // unit}{name}"'
    return str(size)


def parse_seconds(raw: object) -> float:
    """Read seconds: a number, or text such as `250ms`, `30s`, `5m`, `1.5h` or `7d`."""
    unreadable = Unfit('is not a duration; write "30s", "5m", "7d" or a number of seconds')
    if isinstance(raw, bool) or not isinstance(raw, int | float | str):
        raise unreadable
    if isinstance(raw, int | float):
        try:
            return float(raw)
        except OverflowError:
            raise unreadable from None
    match = _NUMBER_AND_UNIT.fullmatch(raw.strip())
    if match is None or match[3].lower() not in _DURATIONS:
        raise unreadable
    return float(f"{match[1]}.{match[2] or 0}") * _DURATIONS[match[3].lower()]


def format_seconds(seconds: float) -> str:
    """Write seconds as TOML: a number below an hour, whole days and hours with their unit."""
    seconds = float(seconds)
    for name, unit in (("d", DAY), ("h", HOUR)):
        if seconds >= unit and seconds % unit == 0:
            return f'"{int(seconds // unit)}{name}"'
    return str(int(seconds)) if seconds.is_integer() else repr(seconds)


def parse_whole(raw: object) -> int:
    """Read a whole number: an int, or digits as text, with underscores where they help the eye."""
    if isinstance(raw, str) and _WHOLE.fullmatch(raw.strip()):
        return int(raw)
    if isinstance(raw, bool) or not isinstance(raw, int):
        raise Unfit("is not a whole number; write 1000, without a unit")
    return raw


def parse_share(raw: object) -> float:
    """Read a part of a whole: a number above 0 and up to 1, or the same as text."""
    unreadable = Unfit("is not a share; write a number above 0 and up to 1, such as 0.5")
    if isinstance(raw, bool) or not isinstance(raw, int | float | str):
        raise unreadable
    try:
        share = float(raw)
    except (ValueError, OverflowError):
        raise unreadable from None
    if not 0 < share <= 1:  # written so that NaN fails too
        raise unreadable
    return share


def parse_flag(raw: object) -> bool:
    """Read a TOML boolean, or `true` and `false` as text."""
    if isinstance(raw, str) and raw.lower() in ("true", "false"):
        return raw.lower() == "true"
    if not isinstance(raw, bool):
        raise Unfit("is neither true nor false")
    return raw


def parse_address(text: str) -> Address:
    """Read `host:port`, `[IPv6]:port` or `unix:path`."""
    if text.startswith("unix:"):
        return _parse_socket_path(text.removeprefix("unix:"))
    host, colon, port = text.rpartition(":")
    if not colon or not host or not _PORT.fullmatch(port):
        raise Unfit('is not an address; write "127.0.0.1:9463", "[::1]:9463" or "unix:/run/relay.sock"')
    if int(port) > PORT_MAX:
        raise Unfit(f"has a port beyond {PORT_MAX}")
    if host.startswith("[") and host.endswith("]"):
        return Address(host=_check_ipv6(host[1:-1]), port=int(port), ipv6=True)
    if ":" in host:
        raise Unfit('has an IPv6 host without brackets; write "[::1]:9463"')
    return Address(host=_check_host(host), port=int(port))


def parse_path(text: str) -> str:
    """Read the path of a URL: it starts with a slash and has neither query nor blanks."""
    if not _PATH.fullmatch(text) or set(text) & set("?#"):
        raise Unfit('is not a path; write "/v1/log_event"')
    return text


def parse_origin(text: str) -> str:
    """Read a browser's Origin as it sends it: scheme, host and port; `*` and `null` stand for themselves."""
    origin = text.lower()
    if origin not in ("*", "null") and not _ORIGIN.fullmatch(origin):
        raise Unfit('is not an origin; write "https://app.example.com", without a path, or "*"')
    return origin


def check_url(text: str) -> None:
    """Raise Unfit unless the text is an http or https URL with a host."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise Unfit("is not a URL; look at its host and port") from error
    if parts.scheme not in ("http", "https"):
        raise Unfit('must start with "http://" or "https://"')
    if not parts.hostname or port == 0 or any(character <= " " for character in text):
        raise Unfit('is not a URL; write "https://host/path"')
    if parts.fragment:
        raise Unfit("has a fragment (#…), which is never sent")


def read_text(raw: object) -> str:
    """Take a text that can be printed and given to the system."""
    if not isinstance(raw, str):
        raise Unfit("is not a text; put it in quotes")
    if not raw.isprintable():  # control characters, and the surrogates that stand for bytes that are not UTF-8
        raise Unfit("holds characters that cannot be printed")
    return raw


def split_list(text: str) -> Any:
    """Take a list out of a text: a JSON array, or parts between commas; an empty text is an empty list."""
    if text.startswith("["):
        try:
            return json.loads(text)
        except ValueError:
            pass  # "[::1]:9463" starts like an array and is none
    return [part.strip() for part in text.split(",")] if text.strip() else []


def toml_text(text: str) -> str:
    """Quote text for TOML, which escapes as JSON does, and DEL besides."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _parse_socket_path(path: str) -> Address:
    if not path:
        raise Unfit('names no socket; write "unix:/run/event-relay/relay.sock"')
    if len(path.encode()) > SOCKET_PATH_BYTES_MAX:
        raise Unfit(f"is longer than the {SOCKET_PATH_BYTES_MAX} bytes that the system allows for a socket's path")
    return Address(path=path)


def _check_ipv6(host: str) -> str:
    try:
        return str(ipaddress.IPv6Address(host))
    except ValueError as error:
        raise Unfit("is not an IPv6 address between its brackets") from error


def _check_host(host: str) -> str:
    if not _HOST.fullmatch(host):
        raise Unfit("has a host that is neither a name nor an IPv4 address")
    if re.fullmatch(r"[0-9.]+", host):
        try:
            ipaddress.IPv4Address(host)
        except ValueError as error:
            raise Unfit("is not an IPv4 address before its port") from error
    return host
