"""One request from its head to its answer."""

from __future__ import annotations

import asyncio
import itertools
import os
from typing import TYPE_CHECKING, Final

import msgspec
import structlog
from aiohttp import web

from relay import wire
from relay.errors import (
    AnswerDue,
    BodyTooSlow,
    MethodNotAllowed,
    NotNow,
    PathUnknown,
    Refusal,
    Starting,
    TooLarge,
    Unauthorized,
)
from relay.listener import answers
from relay.listener.memory import Memory, Reservation
from relay.listener.origins import Origins
from relay.spool import Record, Spool, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from concurrent.futures import Executor

    from relay.observe import Observer

INLINE_BYTES_MAX: Final = 64 * 1024
"""Bodies up to this are decoded on the loop, in well under a millisecond; larger ones in a thread."""
INLINE_COMPRESSED_BYTES_MAX: Final = 8 * 1024
"""The same for compressed ones: honest SDK bodies shrink up to 31 to 1."""
HONEST_RATIO: Final = 40
"""Inflated bytes that are reserved at first for each compressed one."""
EVENTS_CLAIM_DIGITS_MAX: Final = 5
"""A client's word on how many events a refusal cost is believed up to 99,999."""
REQUEST_ID_CHARACTERS_MAX: Final = 128
"""Of a client's own X-Request-Id; a longer one is replaced."""

_log = structlog.get_logger()


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The operator's caps, as the configuration names them."""

    request_bytes_max: int
    inflated_bytes_max: int
    event_bytes_max: int
    events_per_request_max: int
    envelope_bytes_max: int
    memory_bytes_max: int
    body_seconds_max: float
    answer_seconds_max: float
    chunk_events_max: int
    chunk_bytes_max: int


class Door:
    """Handles requests; `open_to` lets them through to the spool once it is there."""

    def __init__(
        self,
        *,
        paths: Sequence[str],
        limits: Limits,
        cors_origins: Sequence[str],
        strip_private_attributes: bool,
        allowed_keys: Callable[[], Collection[str] | None],
        observer: Observer,
        now_ms: Callable[[], int],
        decoders: Executor,
    ) -> None:
        """`allowed_keys` gives the operator's list as it stands, None for any key; `decoders` runs big bodies."""
        self._paths = frozenset(_tidy(path) for path in paths)
        self._limits = limits
        self._wire_limits = wire.Limits(
            event_bytes_max=limits.event_bytes_max,
            events_per_request_max=limits.events_per_request_max,
            envelope_bytes_max=limits.envelope_bytes_max,
        )
        self._origins = Origins(cors_origins)
        self._strip_private = strip_private_attributes
        self._allowed_keys = allowed_keys
        self._observer = observer
        self._now_ms = now_ms
        self._decoders = decoders
        self._memory = Memory(limits.memory_bytes_max)
        self._loop = asyncio.get_running_loop()
        self._spool: asyncio.Future[Spool] = self._loop.create_future()
        self._request_ids = map(f"{os.urandom(6).hex()}-{{}}".format, itertools.count(1))
        self.closing = False
        """Set while draining: answers ask the client to close the connection."""

    def open_to(self, spool: Spool) -> None:
        """Let requests through; those that came earlier have waited."""
        self._spool.set_result(spool)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request, whatever it is. Only a client that has gone gets none."""
        self._observer.request_began()
        exchange = _Exchange(self._loop.time(), self._answer_headers(request.headers))
        try:
            response = await self._answer(request, exchange)
        except Refusal as refusal:
            response = self._refuse(refusal, request.headers, exchange)
        except (ConnectionError, web.RequestPayloadError) as exc:
            _log.debug("client_gone", error=type(exc).__name__)
            raise
        except Exception:  # noqa: BLE001 – a bug of ours must not cost a client its events: 503 makes it come back
            _log.exception("ingest_failed", request_id=exchange.headers["X-Request-Id"])
            failed = NotNow("the relay met an error of its own; nothing was acknowledged, send the request again")
            response = self._refuse(failed, request.headers, exchange)
        finally:
            self._observer.request_ended()
        if self.closing or exchange.spent:
            response.force_close()
        self._observer.request_answered(response.status, self._loop.time() - exchange.body_at)
        return response

    async def check_head(self, request: web.Request) -> None:
        """Answer `Expect: 100-continue`, unless the head alone already earns a refusal."""
        if not self._is_too_large(request):
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    async def _answer(self, request: web.BaseRequest, exchange: _Exchange) -> web.Response:
        if request.path not in self._paths and _tidy(request.path) not in self._paths:
            raise PathUnknown(f"events are taken at {', '.join(sorted(self._paths))}; see listen.paths")
        self._origins.check(request.headers)
        if request.method == "OPTIONS":
            return answers.empty({"Allow": "POST, OPTIONS", **exchange.headers})
        if request.method != "POST":
            exchange.headers["Allow"] = "POST, OPTIONS"
            raise MethodNotAllowed("events are sent by POST")
        head = wire.read_head(request.headers, request.query_string)
        self._check_key(head.key)
        if self._is_too_large(request):
            exchange.spent = True  # the body was not read
            raise self._too_large()
        with self._memory.reserve() as reservation:
            body = await self._read(request, reservation, exchange)
            exchange.body_at = self._loop.time()
            parsed = await self._decode(body, request.headers, head, reservation)
            exchange.events = parsed.events + len(parsed.rejected)
            await self._append(parsed, head, exchange)
        self._count(parsed)
        return answers.accepted(parsed.rejected, exchange.headers)

    def _check_key(self, key: str) -> None:
        allowed = self._allowed_keys()
        if allowed is None:
            return
        if not key:
            raise Unauthorized("no key: send it in the header statsig-api-key or in the query as k=")
        if key not in allowed:
            raise Unauthorized("this key is not in the relay's listen.api_keys_allowed_file")

    def _is_too_large(self, request: web.BaseRequest) -> bool:
        return (request.content_length or 0) > self._limits.request_bytes_max

    def _too_large(self) -> TooLarge:
        return TooLarge(f"the body is larger than {self._limits.request_bytes_max} bytes (listen.request_bytes_max)")

    async def _read(self, request: web.BaseRequest, reservation: Reservation, exchange: _Exchange) -> bytes:
        """Read the body as it is on the wire, within its cap and its time."""
        content = request.content
        if content.is_eof():  # it came with the head
            body = content.read_nowait()
            reservation.set(len(body))
            return body
        reservation.set(request.content_length or 0)
        pieces, size = [], 0
        try:
            async with asyncio.timeout(self._limits.body_seconds_max):
                while piece := await content.readany():
                    size += len(piece)
                    if size > self._limits.request_bytes_max:
                        exchange.spent = True
                        raise self._too_large()
                    if request.content_length is None:
                        reservation.set(size)
                    pieces.append(piece)
        except TimeoutError:
            exchange.spent = True
            raise BodyTooSlow(
                f"the body took longer than {self._limits.body_seconds_max:g} s (listen.body_seconds_max); "
                "send it again"
            ) from None
        except NotNow:
            exchange.spent = True
            raise
        return b"".join(pieces)

    async def _decode(
        self, body: bytes, headers: Mapping[str, str], head: wire.Head, reservation: Reservation
    ) -> wire.Parsed:
        coding = headers.get("Content-Encoding", "")
        compressed = wire.needs_inflating(body)
        if len(body) <= (INLINE_COMPRESSED_BYTES_MAX if compressed else INLINE_BYTES_MAX):
            return self._decode_now(body, coding, head, reservation)
        if not compressed:
            reservation.set(2 * len(body))
            return await self._loop.run_in_executor(self._decoders, self._parse, body, head)
        expected = min(self._limits.inflated_bytes_max, HONEST_RATIO * len(body))
        reservation.set(len(body) + 2 * expected)
        inflated = await self._loop.run_in_executor(self._decoders, self._inflate, body, coding, head, expected)
        if inflated is None:  # past the honest ratio: the whole cap has to be free
            reservation.set(len(body) + 2 * self._limits.inflated_bytes_max)
            whole = self._limits.inflated_bytes_max
            inflated = await self._loop.run_in_executor(self._decoders, self._inflate, body, coding, head, whole)
        assert inflated is not None, "at the full cap an excess raises"
        reservation.set(2 * len(inflated))
        return await self._loop.run_in_executor(self._decoders, self._parse, inflated, head)

    def _decode_now(self, body: bytes, coding: str, head: wire.Head, reservation: Reservation) -> wire.Parsed:
        raw = self._inflate(body, coding, head, self._limits.inflated_bytes_max)
        assert raw is not None, "at the full cap an excess raises"
        reservation.set(2 * len(raw))
        return self._parse(raw, head)

    def _inflate(self, body: bytes, coding: str, head: wire.Head, bytes_max: int) -> bytes | None:
        """Inflate; None where it passes a bound that is not the operator's yet."""
        try:
            return wire.inflate(body, coding, head.gzip_claimed, inflated_bytes_max=bytes_max)
        except TooLarge:
            if bytes_max < self._limits.inflated_bytes_max:
                return None
            raise

    def _parse(self, raw: bytes, head: wire.Head) -> wire.Parsed:
        now_ms = self._now_ms()
        return wire.parse_body(
            raw,
            limits=self._wire_limits,
            now_ms=now_ms,
            skew_ms=head.skew_ms(now_ms),
            strip_private=self._strip_private,
        )

    async def _append(self, parsed: wire.Parsed, head: wire.Head, exchange: _Exchange) -> None:
        deadline = exchange.body_at + self._limits.answer_seconds_max
        spool = await self._open_spool(deadline)
        try:
            await spool.append(self._records(parsed, head), deadline=deadline)
        except AnswerDue as due:
            if due.ambiguous:
                self._observer.request_ambiguous()
            raise

    async def _open_spool(self, deadline: float) -> Spool:
        if self._spool.done():
            return self._spool.result()
        try:
            async with asyncio.timeout_at(deadline):
                return await asyncio.shield(self._spool)
        except TimeoutError:
            raise Starting("the relay is still opening its queue; send the request again") from None

    def _records(self, parsed: wire.Parsed, head: wire.Head) -> list[Record]:
        now_ms = self._now_ms()
        skew_ms = head.skew_ms(now_ms)

        def record(text: bytes, events: int, dead: Verdict | None) -> Record:
            return Record(
                key=head.key,
                envelope=parsed.envelope,
                headers=head.headers,
                text=text,
                events=events,
                accepted_at_ms=now_ms,
                skew_ms=skew_ms,
                dead=dead,
            )

        limits = self._limits
        pieces = wire.cut(
            parsed.text, parsed.events, events_max=limits.chunk_events_max, bytes_max=limits.chunk_bytes_max
        )
        records = [record(text, events, None) for text, events in pieces]
        records += [record(one.raw, 1, Verdict(reason=one.reason, detail=one.message)) for one in parsed.rejected]
        return records

    def _count(self, parsed: wire.Parsed) -> None:
        self._observer.events_accepted(parsed.events + len(parsed.rejected), len(parsed.text))
        for reason, events in parsed.suspects.items():
            self._observer.suspects_seen(reason, events)

    def _refuse(self, refusal: Refusal, headers: Mapping[str, str], exchange: _Exchange) -> web.Response:
        self._observer.events_refused(refusal.reason, exchange.events or _claimed_events(headers))
        return answers.refused(refusal, exchange.headers)

    def _answer_headers(self, headers: Mapping[str, str]) -> dict[str, str]:
        answer = self._origins.answer_headers(headers)
        wanted = headers.get("X-Request-Id", "")
        taken = wanted.isprintable() and 0 < len(wanted) <= REQUEST_ID_CHARACTERS_MAX
        answer["X-Request-Id"] = wanted if taken else next(self._request_ids)
        return answer


class _Exchange:
    """What is known of a request so far."""

    __slots__ = ("body_at", "events", "headers", "spent")

    def __init__(self, body_at: float, headers: dict[str, str]) -> None:
        self.body_at = body_at
        """When its last byte came, in event-loop seconds."""
        self.headers = headers
        """Of the answer."""
        self.events = 0
        """As counted; 0 while nobody knows."""
        self.spent = False
        """The rest of its body will not be read: the connection has to close."""


def _tidy(path: str) -> str:
    """Forgive doubled and trailing slashes: a 404 makes an SDK drop its events."""
    return "/" + "/".join(part for part in path.split("/") if part)


def _claimed_events(headers: Mapping[str, str]) -> int:
    claim = headers.get("statsig-event-count", "")
    believed = claim.isascii() and claim.isdigit() and len(claim) <= EVENTS_CLAIM_DIGITS_MAX
    return int(claim) if believed else 1
