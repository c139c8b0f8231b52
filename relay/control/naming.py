"""How an operator calls a lane: by the fingerprint of its key, `default`, or its number; pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from relay.errors import RelayError
from relay.observe import fingerprint

if TYPE_CHECKING:
    from collections.abc import Iterable

_FINGERPRINT: Final = re.compile("[0-9a-f]{8}")


class UnknownLane(RelayError):
    """Nothing is called so."""


def lanes_called(name: str, lanes: Iterable[tuple[int, str]]) -> list[int]:
    """Give the numbers of the lanes, of (number, key), that a name means; raises UnknownLane where there is none.

    A fingerprint means every lane of that key: one that was rekeyed may stand beside another.
    """
    wanted = name.strip().lower().removeprefix("#")
    by_number = wanted.isdecimal() and not _FINGERPRINT.fullmatch(wanted)
    found = [number for number, key in lanes if (str(number) if by_number else fingerprint(key)) == wanted]
    if not found:
        raise UnknownLane(f"no lane is called {name!r}; `relay queue lanes` lists them")
    return found
