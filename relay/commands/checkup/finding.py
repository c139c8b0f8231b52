"""One finding of the doctor."""

from __future__ import annotations

from typing import Literal

import msgspec


class Finding(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was looked at, how it is, and what to do where it is not well."""

    about: str
    level: Literal["ok", "warn", "fail"]
    text: str
    cure: str = ""


def ok(about: str, text: str) -> Finding:
    """All is well."""
    return Finding(about, "ok", text)


def warn(about: str, text: str, cure: str) -> Finding:
    """It works, and may not always."""
    return Finding(about, "warn", text, cure)


def fail(about: str, text: str, cure: str) -> Finding:
    """It does not work, or events are at risk."""
    return Finding(about, "fail", text, cure)
