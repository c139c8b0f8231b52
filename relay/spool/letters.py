"""Dead letters: what is known of one, and how an operator says which ones are meant."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

IDS_MAX: Final = 500
"""Named in one choice; SQLite takes 32,766 values in a statement."""

_COLUMNS: Final = (
    "d.chunk, q.lane, q.events, q.bytes, CAST(ROUND(q.timestamp * 1000) AS INTEGER), d.reason, d.detail, d.status, "
    "d.attempts, CAST(ROUND(d.first_attempt_at * 1000) AS INTEGER), CAST(ROUND(d.died_at * 1000) AS INTEGER)"
)
_FROM: Final = "FROM dead_letters AS d CROSS JOIN queue_default AS q INDEXED BY chunks ON q._id = d.chunk"
"""CROSS JOIN has SQLite walk the letters, which are few, and look each up in the index."""


class DeadLetter(msgspec.Struct, frozen=True):
    """A chunk that upstream will never take, without its bytes."""

    id: int
    lane: int
    events: int
    bytes: int
    accepted_at_ms: int
    reason: str
    detail: str
    status: int
    """Upstream's; 0 where there was none."""
    attempts: int
    first_attempt_at_ms: int
    died_at_ms: int


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """Which dead letters are meant: those for which all of this is true."""

    ids: tuple[int, ...] = ()
    """Empty: any."""
    lanes: tuple[int, ...] | None = None
    """None: any."""
    reason: str = ""
    died_before_ms: int | None = None
    not_reason: str = ""


def select(run: Callable[..., Sequence[Any]], choice: Choice, *, after: int, upto: int, limit: int) -> list[DeadLetter]:
    """Give the next of the chosen letters by id, `after` < id <= `upto`; `run(sql, *values)` gives rows."""
    where, values = _where(choice, after, upto)
    rows = run(f"SELECT {_COLUMNS} {_FROM} WHERE {where} ORDER BY d.chunk LIMIT ?", *values, limit)
    return [DeadLetter(*row) for row in rows]


def count(run: Callable[..., Sequence[Any]], choice: Choice, *, upto: int) -> list[tuple[int, str, int, int, int, int]]:
    """Sum the chosen letters up: (lane, reason, letters, events, bytes, Unix ms of the oldest's death) each."""
    where, values = _where(choice, 0, upto)
    sql = (
        "SELECT q.lane, d.reason, COUNT(*), SUM(q.events), SUM(q.bytes), "
        f"CAST(ROUND(MIN(d.died_at) * 1000) AS INTEGER) {_FROM} WHERE {where} GROUP BY q.lane, d.reason"
    )
    return [(lane, reason, letters, events, size, at) for lane, reason, letters, events, size, at in run(sql, *values)]


def _where(choice: Choice, after: int, upto: int) -> tuple[str, list[Any]]:
    terms = ["d.chunk > ?", "d.chunk <= ?"]
    values: list[Any] = [after, upto]
    if choice.ids:
        terms.append(f"d.chunk IN ({_marks(choice.ids)})")
        values += choice.ids
    if choice.lanes is not None:
        terms.append(f"q.lane IN ({_marks(choice.lanes)})")
        values += choice.lanes
    for term, value in (
        ("d.reason = ?", choice.reason or None),
        ("d.reason <> ?", choice.not_reason or None),
        ("d.died_at < ?", None if choice.died_before_ms is None else choice.died_before_ms / 1000),
    ):
        if value is not None:
            terms.append(term)
            values.append(value)
    return " AND ".join(terms), values


def _marks(values: Iterable[object]) -> str:
    return ",".join("?" for _ in values)
