"""Rows kept in memory for a while after their commit, so that prompt delivery reads no disk; pure."""

from __future__ import annotations

from collections import OrderedDict


class Recent:
    """The stored bytes of the last chunks, up to a bound."""

    def __init__(self, bytes_max: int) -> None:
        self._rows: OrderedDict[int, tuple[int, bytes]] = OrderedDict()
        self._bytes = 0
        self._bytes_max = bytes_max

    def __contains__(self, chunk: int) -> bool:
        return chunk in self._rows

    def __getitem__(self, chunk: int) -> tuple[int, bytes]:
        """Lane and bytes."""
        return self._rows[chunk]

    def add(self, chunk: int, lane: int, data: bytes) -> None:
        """Keep a row; the oldest make room for it."""
        self._rows[chunk] = lane, data
        self._bytes += len(data)
        while self._bytes > self._bytes_max:
            self.forget(next(iter(self._rows)))

    def forget(self, chunk: int) -> None:
        """Let a row go, if it is here."""
        _, data = self._rows.pop(chunk, (0, b""))
        self._bytes -= len(data)
