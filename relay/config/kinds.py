"""The kinds of settings: each has its line of why and its bounds, reads what is given and writes it as TOML; pure."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence  # noqa: TC003  msgspec reads the annotations at run time
from pathlib import Path
from typing import Any, Final

import msgspec

from relay.config.values import (
    Unfit,
    check_url,
    format_seconds,
    format_size,
    parse_flag,
    parse_seconds,
    parse_share,
    parse_size,
    parse_whole,
    read_text,
    split_list,
    toml_text,
)

REDACTED: Final = "***"
SHOWN_CHARACTERS_MAX: Final = 80

_CREDENTIALS: Final = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*://)?.*@", re.DOTALL)
_LOOKS_LIKE_A_KEY: Final = re.compile(r"(secret|client|console)-[^/.]*")


class Kind(msgspec.Struct, frozen=True):
    """One kind of setting, and what the operator should know of it in a line."""

    why: str

    def read(self, raw: object) -> Any:
        """Turn what TOML or the environment holds into the setting's value; raises Unfit."""
        raise NotImplementedError

    def write(self, value: Any) -> str:
        """Write the value as TOML that reads back the same."""
        raise NotImplementedError

    def bounds(self) -> str:
        """Say what it may be, for people; empty where anything of the kind will do."""
        return ""

    def redact(self, text: str) -> str:
        """Give the text without what is secret in it."""
        return text

    def shown(self, raw: object) -> str:
        """Quote a raw value for an error line: one short line, nothing secret in it."""
        text = json.dumps(self.redact(raw) if isinstance(raw, str) else raw, default=str)
        return text if len(text) <= SHOWN_CHARACTERS_MAX else text[:SHOWN_CHARACTERS_MAX] + "…"


class Bounded(Kind, frozen=True):
    """A number between two bounds, both allowed."""

    at_least: float
    at_most: float
    because: str = ""

    def bounds(self) -> str:
        """Give both bounds in the words of the setting."""
        return f"{self._plain(self.at_least)} to {self._plain(self.at_most)}"

    def _within(self, value: float) -> None:
        if not self.at_least <= value <= self.at_most:  # written so that NaN fails too
            raise Unfit(f"must be {self.bounds()}" + (f": {self.because}" if self.because else ""))

    def _plain(self, value: float) -> str:
        return self.write(value).strip('"')


class Size(Bounded, frozen=True):
    """Bytes, read into an int."""

    def read(self, raw: object) -> int:
        """Read `"64MiB"`, `"500KB"` or a plain number of bytes."""
        size = parse_size(raw)
        self._within(size)
        return size

    def write(self, value: Any) -> str:
        """Use the largest unit that leaves a whole number."""
        return format_size(int(value))


class Duration(Bounded, frozen=True):
    """Seconds, read into a float."""

    def read(self, raw: object) -> float:
        """Read `"30s"`, `"1.5h"`, `"7d"` or a plain number of seconds."""
        seconds = parse_seconds(raw)
        self._within(seconds)
        return seconds

    def write(self, value: Any) -> str:
        """Use plain seconds below an hour, whole hours and days where they fit."""
        return format_seconds(value)

    def _plain(self, value: float) -> str:
        text = super()._plain(value)
        return f"{text}s" if text[-1].isdigit() else text


class Whole(Bounded, frozen=True):
    """A whole number, read into an int."""

    def read(self, raw: object) -> int:
        """Read `20000`, `20_000` or the same as text."""
        number = parse_whole(raw)
        self._within(number)
        return number

    def write(self, value: Any) -> str:
        """Write plain digits."""
        return str(int(value))

    def _plain(self, value: float) -> str:
        return f"{int(value):,}"


class Share(Kind, frozen=True):
    """A part of a whole, above 0 and up to 1, read into a float."""

    def read(self, raw: object) -> float:
        """Read `0.5`, `1` or the same as text."""
        return parse_share(raw)

    def write(self, value: Any) -> str:
        """Write a TOML float."""
        return repr(float(value))

    def bounds(self) -> str:
        """Give both bounds."""
        return "above 0, up to 1"


class Flag(Kind, frozen=True):
    """Yes or no, read into a bool."""

    def read(self, raw: object) -> bool:
        """Read `true` and `false`, in the environment as text."""
        return parse_flag(raw)

    def write(self, value: Any) -> str:
        """Write a TOML boolean."""
        return "true" if value else "false"


class Choice(Kind, frozen=True):
    """One of a few words."""

    words: Sequence[str]

    def read(self, raw: object) -> str:
        """Read one of the words, as written."""
        if raw not in self.words:
            raise Unfit(f"must be one of {self.bounds()}")
        return str(raw)

    def write(self, value: Any) -> str:
        """Quote the word."""
        return toml_text(value)

    def bounds(self) -> str:
        """List the words."""
        return ", ".join(self.words)


class Folder(Kind, frozen=True):
    """A folder's path; a relative one starts where the relay is started."""

    def read(self, raw: object) -> Path:
        """Read any path but the empty one."""
        text = read_text(raw)
        if not text:
            raise Unfit("must name a folder")
        return Path(text)

    def write(self, value: Any) -> str:
        """Quote the path."""
        return toml_text(str(value))


class File(Kind, frozen=True):
    """A file's path, or None where the text is empty; whether it is there is not asked here."""

    def read(self, raw: object) -> Path | None:
        """Read a path; a key that was pasted in its place is refused."""
        text = read_text(raw)
        if _LOOKS_LIKE_A_KEY.fullmatch(text):
            raise Unfit("looks like a key itself; put the key into a file and name the file here")
        return Path(text) if text else None

    def write(self, value: Any) -> str:
        """Quote the path; no file is the empty text."""
        return toml_text("" if value is None else str(value))

    def redact(self, text: str) -> str:
        """Hide a key that was pasted in the path's place."""
        return REDACTED if _LOOKS_LIKE_A_KEY.fullmatch(text) else text


class Url(Kind, frozen=True):
    """An http or https URL; None where the text is empty, if that is allowed."""

    optional: bool = False

    def read(self, raw: object) -> str | None:
        """Read the URL and leave it as written."""
        text = read_text(raw)
        if not text and self.optional:
            return None
        check_url(text)
        return text

    def write(self, value: Any) -> str:
        """Quote the URL, its credentials and its query hidden."""
        return toml_text("" if value is None else self.redact(value))

    def redact(self, text: str) -> str:
        """Hide user, password and query, rather too much than too little."""
        text = _CREDENTIALS.sub(rf"\g<1>{REDACTED}@", text, count=1)
        address, question, _ = text.partition("?")
        return address + (f"?{REDACTED}" if question else "")


class Several(Kind, frozen=True):
    """A tuple of things that are each written as text; one alone may stand without its list."""

    item: Callable[[str], Any]
    empty_allowed: bool = False

    def read(self, raw: object) -> tuple[Any, ...]:
        """Read a list, a JSON array in a text, or text separated by commas; none may stand twice."""
        texts = split_list(raw) if isinstance(raw, str) else raw
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise Unfit('is not a list of texts; write ["…", "…"], or "…,…" in the environment')
        if not texts and not self.empty_allowed:
            raise Unfit("must name at least one")
        items = tuple(self._read_item(text) for text in texts)
        twice = next((item for item in items if items.count(item) > 1), None)
        if twice is not None:
            raise Unfit(f"names {twice} twice")
        return items

    def _read_item(self, text: str) -> Any:
        try:
            return self.item(read_text(text))
        except Unfit as error:
            raise Unfit(f"{self.shown(text)} {error}") from error

    def write(self, value: Any) -> str:
        """Write a TOML array on one line."""
        return "[" + ", ".join(toml_text(str(item)) for item in value) + "]"


class Single(Kind, frozen=True):
    """One thing that is written as text."""

    item: Callable[[str], Any]

    def read(self, raw: object) -> Any:
        """Read the text."""
        return self.item(read_text(raw))

    def write(self, value: Any) -> str:
        """Quote it."""
        return toml_text(str(value))
