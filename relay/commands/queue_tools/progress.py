"""A progress line on stderr, for people only: where stderr is no terminal nothing is shown."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from typing import TextIO

WIDTH: Final = 30
SHOW_SECONDS: Final = 0.1


class ProgressLine:
    """Shows how far something has come of `total`; use it as a context manager, its line is wiped at the end."""

    def __init__(self, what: str, total: int, stream: TextIO | None = None) -> None:
        self._what = what
        self._total = max(total, 1)
        self._stream = stream or sys.stderr
        self._on_terminal = self._stream.isatty()
        self._shown_at = float("-inf")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._on_terminal:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def at(self, done: int) -> None:
        """Show that so much is done; ten times a second at most."""
        now = time.monotonic()
        if not self._on_terminal or now - self._shown_at < SHOW_SECONDS:
            return
        self._shown_at = now
        share = min(done / self._total, 1.0)
        bar = "█" * round(share * WIDTH)
        self._stream.write(f"\r\x1b[K{self._what} {bar:░<{WIDTH}} {share:4.0%}  {done:,} of {self._total:,}")
        self._stream.flush()
