"""One request from its head to its answer."""

from __future__ import annotations

import asyncio
import itertools
import os
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import structlog
from aiohttp import web

from relay.errors import AnswerDue, BodyTooSlow, InvalidRequest, OwnFault, Refusal, Starting, Stopping
from relay.listener import answers
from relay.listener.admission import Admission
from relay.listener.intake import Arrival, Digest, Intake
from relay.listener.limits import Limits
from relay.listener.memory import Memory, Reservation
from relay.listener.origins import Origins
from relay.listener.resends import Resends
from relay.logs import OnceAMinute

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from concurrent.futures import Executor

    from relay.errors import NotNow
    from relay.listener import simple
    from relay.observe import Observer
    from relay.spool import Spool

__all__ = ["Door", "Limits"]

EVENTS_CLAIM_DIGITS_MAX: Final = 5
"""A client's word on how many events a refusal cost is believed up to 99,999."""
REQUEST_ID_CHARACTERS_MAX: Final = 128
"""Of a client's own X-Request-Id; a longer one is replaced."""
_ALLOW: Final = {"Allow": "POST, OPTIONS"}
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"

_log = structlog.get_logger()


class Door:
    """Handles requests; `open_to` lets them through to the spool once it is there."""

    def __init__(
        self,
        *,
        paths: Sequence[str],
        limits: Limits,
        cors_origins: Sequence[str],
        strip_private_attributes: bool,
        suppress_resends: bool = True,
        allowed_keys: Callable[[], Collection[str] | None],
        keyless_taken: bool = True,
        observer: Observer,
        now_ms: Callable[[], int],
        decoders: Executor,
    ) -> None:
        """Prepare to handle requests.

        `allowed_keys` gives the operator's list as it stands, None for any key; `keyless_taken` says whether requests
        without a key have one to be sent with; `decoders` runs big bodies.
        """
        self._limits = limits
        self._origins = Origins(cors_origins)
        self._admission = Admission(
            paths=paths,
            origins=self._origins,
            allowed_keys=allowed_keys,
            keyless_taken=keyless_taken,
            request_bytes_max=limits.request_bytes_max,
        )
        self._loop = asyncio.get_running_loop()
        self._intake = Intake(
            limits,
            strip_private=strip_private_attributes,
            resends=Resends(clock=self._loop.time) if suppress_resends else None,
            decoders=decoders,
            now_ms=now_ms,
        )
        self._observer = observer
        self._now_ms = now_ms
        self._memory = Memory(limits.memory_bytes_max)
        self._spool: asyncio.Future[Spool] = self._loop.create_future()
        self._request_ids = map(f"{os.urandom(6).hex()}-{{}}".format, itertools.count(1))
        self._reading: set[asyncio.Timeout] = set()
        self._hurried = False
        self._faults = OnceAMinute()
        self.closing = False
        """Set while draining: answers ask the client to close the connection."""

    def open_to(self, spool: Spool) -> None:
        """Let requests through; those that came earlier have waited."""
        self._spool.set_result(spool)

    def hurry(self) -> None:
        """Wait for no body any longer: whose has not arrived yet is answered 503 now."""
        self._hurried = True
        for timeout in self._reading:
            timeout.reschedule(self._loop.time())

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request, whatever it is. Only a client that has gone gets none."""
        self._observer.request_began()
        try:
            response = await self._handle(request)
        finally:
            self._observer.request_ended()
        if self.closing or not request.content.is_eof():  # what is left of its body must not be taken for a request
            response.force_close()
        return response

    def take(self, head: simple.Head, body: bytes, answer: Callable[[bytes], None]) -> bool:
        """Store a simple request without waiting for it; `answer` is called once, with a whole HTTP answer.

        False where it is not for this way, refusals included: nothing was done then, and `handle` is to have it.
        """
        if self.closing or not self._spool.done():
            return False
        came_at = self._loop.time()
        reservation = self._memory.reserve()
        try:
            digest = self._digest_simple(head, body, reservation)
            if digest is None or not digest.records:
                reservation.release()
                return False
            stored = partial(self._answer_simple, answer, digest, reservation, came_at)
            deadline = came_at + self._limits.answer_seconds_max
            self._spool.result().submit(digest.records, deadline=deadline, done=stored)
        except Refusal:
            reservation.release()
            return False
        except Exception as exc:  # noqa: BLE001 – a bug of ours: `handle` meets it too, and can answer it
            reservation.release()
            self._note_fault(exc)
            return False
        self._observer.request_began()
        return True

    def _digest_simple(self, head: simple.Head, body: bytes, reservation: Reservation) -> Digest | None:
        self._admission.check_simple(head, len(body))
        arrival = Arrival(
            body=body,
            coding=head.headers.get("content-encoding", ""),
            head=head.about,
            received_at_ms=self._now_ms(),
        )
        digest = self._intake.digest_at_once(arrival, reservation)
        return None if digest is None or digest.rejected else digest

    def _answer_simple(
        self,
        answer: Callable[[bytes], None],
        digest: Digest,
        reservation: Reservation,
        came_at: float,
        refusal: NotNow | None,
    ) -> None:
        reservation.release()
        self._observer.request_ended()
        request_id = next(self._request_ids)
        if refusal is None:
            self._count(digest)
            status, reply = int(HTTPStatus.ACCEPTED), answers.accepted_raw(request_id)
        else:
            self._observer.events_refused(refusal.reason, digest.events)
            self._count_doubt(refusal)
            status, reply = refusal.status, answers.refused_raw(refusal, request_id)
        self._observer.request_answered(status, self._loop.time() - came_at)
        answer(reply)

    def refuse_unread(self, refusal: Refusal) -> bytes:
        """Refuse a connection whose request was not read, and count that; gives the whole answer."""
        self._observer.request_answered(refusal.status, 0.0)
        return answers.refused_raw(refusal)

    def refuse_malformed(self) -> web.Response:
        """Answer what is not HTTP; none of it is quoted, for it may hold a key."""
        refusal = InvalidRequest("this is not HTTP as RFC 9112 has it, or its head is too large")
        self._observer.request_answered(refusal.status, 0.0)
        response = answers.refused(refusal, {"Server": answers.SERVER, "Connection": "close"})
        response.force_close()
        return response

    async def _handle(self, request: web.BaseRequest) -> web.Response:
        exchange = _Exchange(self._loop.time(), self._now_ms(), self._answer_headers(request.headers))
        try:
            response = await self._answer(request, exchange)
        except _ClientGone:
            return answers.refused(InvalidRequest("nobody reads this"), exchange.headers)
        except Refusal as refusal:
            response = self._refuse(refusal, request, exchange)
        except Exception as exc:  # noqa: BLE001 – a bug of ours must not cost a client its events: 503 makes it return
            self._note_fault(exc)
            fault = OwnFault("the relay met an error of its own; nothing was acknowledged, send the request again")
            response = self._refuse(fault, request, exchange)
        self._observer.request_answered(response.status, self._loop.time() - exchange.body_at)
        return response

    async def _answer(self, request: web.BaseRequest, exchange: _Exchange) -> web.Response:
        headers = request.headers
        self._admission.check_place(request.method, request.path, headers)
        if request.method == "OPTIONS":
            return answers.empty({**_ALLOW, **exchange.headers})
        head = self._admission.read_head(headers, request.rel_url.raw_query_string)
        self._admission.check_size(request.content_length or 0)
        with self._memory.reserve() as reservation:
            arrival = Arrival(
                body=await self._read(request, reservation, exchange),
                coding=headers.get("Content-Encoding", ""),
                head=head,
                received_at_ms=exchange.received_at_ms,
            )
            deadline = exchange.body_at + self._limits.answer_seconds_max
            digest = await self._intake.digest(arrival, reservation, deadline=deadline)
            del arrival  # the body's memory is not needed while the disk works
            exchange.events = digest.events
            await self._append(digest, deadline)
        self._count(digest)
        return answers.accepted(digest.rejected, exchange.headers)

    async def _read(self, request: web.BaseRequest, reservation: Reservation, exchange: _Exchange) -> bytes:
        """Read the body as it is on the wire, within its cap and its time."""
        content = request.content
        if content.is_eof() and content.exception() is None:  # it came with the head
            body = content.read_nowait()
            self._admission.check_size(len(body))
            reservation.set(len(body))
            return body
        reservation.check(request.content_length or 0)
        _ask_for_body(request)
        try:
            async with asyncio.timeout(0 if self._hurried else self._limits.body_seconds_max) as timeout:
                self._reading.add(timeout)
                try:
                    return await self._read_pieces(request, reservation)
                finally:
                    self._reading.discard(timeout)
                    exchange.body_at = self._loop.time()
        except TimeoutError:
            raise self._too_slow() from None

    async def _read_pieces(self, request: web.BaseRequest, reservation: Reservation) -> bytes:
        pieces, size = [], 0
        try:
            while piece := await request.content.readany():
                size += len(piece)
                self._admission.check_size(size)
                reservation.set(size)
                pieces.append(piece)
        except (OSError, web.RequestPayloadError) as exc:
            if request.transport is None or request.transport.is_closing():
                raise _ClientGone from exc
            raise InvalidRequest("the body's chunks are malformed, or too small to be honest") from exc
        return b"".join(pieces)

    def _too_slow(self) -> Refusal:
        if self._hurried:
            return Stopping("the relay stops before this body has arrived; send it again")
        seconds = self._limits.body_seconds_max
        return BodyTooSlow(f"the body took longer than {seconds:g} s (listen.body_seconds_max); send it again")

    async def _append(self, digest: Digest, deadline: float) -> None:
        spool = await self._open_spool(deadline)
        if not digest.records:
            return  # all of it was stored by an earlier request
        try:
            await spool.append(digest.records, deadline=deadline)
        except AnswerDue as due:
            self._count_doubt(due)
            raise

    async def _open_spool(self, deadline: float) -> Spool:
        if self._spool.done():
            return self._spool.result()
        try:
            async with asyncio.timeout_at(deadline):
                return await asyncio.shield(self._spool)
        except TimeoutError:
            raise Starting("the relay is still opening its queue; send the request again") from None

    def _count_doubt(self, refusal: Refusal) -> None:
        if isinstance(refusal, AnswerDue) and refusal.ambiguous:
            self._observer.request_ambiguous()

    def _count(self, digest: Digest) -> None:
        self._intake.stored(digest)
        self._observer.events_accepted(digest.events, digest.bytes)
        if digest.suppressed:
            self._observer.events_suppressed(digest.suppressed)
        for reason, events in digest.suspects.items():
            self._observer.suspects_seen(reason, events)

    def _refuse(self, refusal: Refusal, request: web.BaseRequest, exchange: _Exchange) -> web.Response:
        if request.method == "POST":
            self._observer.events_refused(refusal.reason, exchange.events or _claimed_events(request.headers))
        elif refusal.status == web.HTTPMethodNotAllowed.status_code:
            exchange.headers |= _ALLOW
        return answers.refused(refusal, exchange.headers)

    def _note_fault(self, fault: Exception) -> None:
        self._faults.say(_log.error, "ingest_failed", per=type(fault).__name__, exc_info=fault)

    def _answer_headers(self, headers: Mapping[str, str]) -> dict[str, str]:
        answer = self._origins.answer_headers(headers)
        answer["Server"] = answers.SERVER
        wanted = headers.get("X-Request-Id", "")
        taken = wanted.isascii() and wanted.isprintable() and 0 < len(wanted) <= REQUEST_ID_CHARACTERS_MAX
        answer["X-Request-Id"] = wanted if taken else next(self._request_ids)
        return answer


class _ClientGone(Exception):
    """Nobody waits for the answer any more."""


class _Exchange:
    """What is known of a request so far."""

    __slots__ = ("body_at", "events", "headers", "received_at_ms")

    def __init__(self, body_at: float, received_at_ms: int, headers: dict[str, str]) -> None:
        self.body_at = body_at
        """When its last byte came, in event-loop seconds."""
        self.received_at_ms = received_at_ms
        """When its head came, by the wall clock."""
        self.headers = headers
        """Of the answer."""
        self.events = 0
        """As counted; 0 while nobody knows."""


def _ask_for_body(request: web.BaseRequest) -> None:
    """Send `100 Continue` where the client waits for it (RFC 9110 §10.1.1)."""
    expects = request.headers.get("Expect", "").lower() == "100-continue"
    if expects and request.version >= (1, 1) and request.transport is not None:
        request.transport.write(_CONTINUE)


def _claimed_events(headers: Mapping[str, str]) -> int:
    claim = headers.get("statsig-event-count", "")
    believed = claim.isascii() and claim.isdigit() and len(claim) <= EVENTS_CLAIM_DIGITS_MAX
    return int(claim) if believed else 1
