"""What an operator may do to a queue, in one place: to the spool, and to the forwarder where one runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from relay.control.naming import UnknownLane, lanes_called
from relay.control.protocol import (
    Done,
    LaneList,
    Lanes,
    LaneView,
    Letters,
    Pause,
    Progress,
    Purge,
    Refused,
    Rekey,
    Replay,
    Request,
    Resume,
)
from relay.errors import SpoolError
from relay.observe import fingerprint
from relay.spool.letters import Choice

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from relay.spool import LaneStats
    from relay.spool.graveyard import Tally
    from relay.spool.spool import DiskSpool


class Standing(Protocol):
    """How a lane that is not simply active stands."""

    @property
    def state(self) -> str:
        """One of backing_off, parked, paused."""
        ...

    @property
    def next_try_in_seconds(self) -> float | None:
        """None while nothing but somebody's doing holds it back."""
        ...

    @property
    def error(self) -> str:
        """Why it waits."""
        ...


class Delivery(Protocol):
    """What the verbs need of a forwarder."""

    def pause(self, lane: int) -> None:
        """Hold a lane."""
        ...

    def resume(self, lane: int) -> None:
        """Let it go on, at once."""
        ...


class NoDelivery:
    """No forwarder runs: whoever starts one asks the spool which lanes are held."""

    def pause(self, lane: int) -> None:
        """Nothing to hold."""

    def resume(self, lane: int) -> None:
        """Nothing to let go."""


class Verbs:
    """Carries requests out, one call each; use it on the spool's event loop."""

    def __init__(
        self,
        spool: DiskSpool,
        *,
        delivery: Delivery,
        standings: Callable[[], Mapping[int, Standing]],
        now_ms: Callable[[], int],
    ) -> None:
        self._spool = spool
        self._delivery = delivery
        self._standings = standings
        self._now_ms = now_ms

    async def run(self, request: Request, progress: Callable[[Progress], None]) -> Done | LaneList | Refused:
        """Do it, and say what was done, once it is on disk."""
        try:
            if isinstance(request, Replay | Purge):
                return await self._settle_letters(request, _telling(progress))
            return await self._change_lanes(request)
        except UnknownLane as exc:
            return Refused("unknown_lane", str(exc))
        except SpoolError as exc:
            return Refused("disk_error", f"the queue could not be changed, or not all of it was: {exc}")

    def restore_pauses(self) -> None:
        """Hold the lanes that were held when the last run ended."""
        for lane in self._spool.all_lanes():
            if lane.paused:
                self._delivery.pause(lane.lane)

    async def _settle_letters(self, request: Replay | Purge, progress: Callable[[Tally], None]) -> Done:
        chosen = self._chosen(request.letters)
        settle = self._spool.replay if isinstance(request, Replay) else self._spool.purge
        tally = await settle(chosen, progress)
        return Done(tally.chunks, tally.events)

    async def _change_lanes(self, request: Lanes | Pause | Resume | Rekey) -> Done | LaneList | Refused:
        match request:
            case Lanes():
                return LaneList(self._views(), recovering=self._spool.stats().recovering)
            case Pause():
                return await self._hold(request.lane, paused=True)
            case Resume():
                return await self._hold(request.lane, paused=False)
            case Rekey():
                return await self._rekey(request.lane, request.key)

    async def _hold(self, name: str, *, paused: bool) -> Done:
        numbers = self._called(name)
        for number in numbers:
            await self._spool.hold_lane(number, paused=paused)
            (self._delivery.pause if paused else self._delivery.resume)(number)
        return Done(lanes=self._views(numbers))

    async def _rekey(self, name: str, key: str) -> Done | Refused:
        if not (key.isascii() and key.isprintable()):
            return Refused("malformed", "the new key is no key: it has other than printable characters")
        numbers = self._called(name)
        paused = {lane.lane for lane in self._spool.all_lanes() if lane.paused}
        for number in numbers:
            await self._spool.rekey(number, key)
            if number not in paused:
                self._delivery.resume(number)  # it waited for its old key to work again
        return Done(lanes=self._views(numbers))

    def _called(self, name: str) -> list[int]:
        return lanes_called(name, [(lane.lane, lane.key) for lane in self._spool.all_lanes()])

    def _chosen(self, letters: Letters) -> Choice:
        older = letters.older_than_seconds
        return Choice(
            ids=letters.ids,
            lanes=tuple(self._called(letters.lane)) if letters.lane else None,
            reason=letters.reason,
            died_before_ms=None if older is None else self._now_ms() - int(older * 1000),
        )

    def _views(self, numbers: list[int] | None = None) -> tuple[LaneView, ...]:
        standings = self._standings()
        return tuple(
            _view(lane, standings.get(lane.lane))
            for lane in self._spool.all_lanes()
            if numbers is None or lane.lane in numbers
        )


def _view(lane: LaneStats, standing: Standing | None) -> LaneView:
    return LaneView(
        number=lane.lane,
        fingerprint=fingerprint(lane.key),
        state="paused" if lane.paused else "active" if standing is None else standing.state,
        events=lane.events,
        bytes=lane.bytes,
        in_flight_events=lane.in_flight_events,
        dead_chunks=lane.dead_chunks,
        oldest_accepted_at_ms=lane.oldest_accepted_at_ms,
        next_try_in_seconds=None if standing is None else standing.next_try_in_seconds,
        error="" if standing is None else standing.error,
    )


def _telling(progress: Callable[[Progress], None]) -> Callable[[Tally], None]:
    return lambda tally: progress(Progress(tally.chunks, tally.events))
