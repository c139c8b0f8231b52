"""Every setting: its name, default, kind, bounds, and the one line why that an operator reads."""

from pathlib import Path
from typing import Annotated, Final, get_type_hints

import msgspec

from relay.config.kinds import Choice, Duration, File, Flag, Folder, Kind, Several, Share, Single, Size, Url, Whole
from relay.config.values import DAY, GIB, HOUR, KIB, MIB, MINUTE, TIB, Address, parse_address, parse_origin, parse_path


class Listen(msgspec.Struct, frozen=True, kw_only=True):
    """The front door, and what a request may cost."""

    address: Annotated[
        tuple[Address, ...],
        Several(
            'Where apps post: one or a list; "unix:/run/event-relay/relay.sock"; IPv6 is skipped where absent',
            item=parse_address,
        ),
    ] = (Address("127.0.0.1", 9463), Address("::1", 9463, ipv6=True))
    paths: Annotated[
        tuple[str, ...],
        Several("Paths that take events; add your own if your SDKs were told other names", item=parse_path),
    ] = ("/v1/log_event", "/v1/rgstr", "/v1/log_event_beacon", "/v1/rgstr_b")
    request_bytes_max: Annotated[
        int, Size("Longest body on the wire; beyond it 413, which makes most SDKs drop the batch", KIB, GIB)
    ] = 16 * MIB
    inflated_bytes_max: Annotated[
        int,
        Size(
            "Longest body after inflating, gzip bombs included; left alone, it is at most what an empty queue holds",
            KIB,
            GIB,
        ),
    ] = 64 * MIB
    event_bytes_max: Annotated[int, Size("Longest single event; session recordings reach 10 MB", KIB, 256 * MIB)] = (
        10 * MIB
    )
    events_per_request_max: Annotated[int, Whole("Most events in a request; SDKs send up to 2,000", 1, 1_000_000)] = (
        20_000
    )
    envelope_bytes_max: Annotated[
        int, Size("Longest rest of a body beside its events, for it is stored with every chunk", KIB, 16 * MIB)
    ] = 256 * KIB
    memory_bytes_max: Annotated[
        int, Size("Requests in hand, inflated; no room is 503, which SDKs retry", MIB, 64 * GIB)
    ] = 96 * MIB
    connections_max: Annotated[int, Whole("Open connections; some SDKs open one for each request", 1, 65_536)] = 1024
    body_seconds_max: Annotated[
        float, Duration("How long a body may take to arrive; beyond it 408, which SDKs retry", 0.1, 10 * MINUTE)
    ] = 30.0
    answer_seconds_max: Annotated[
        float,
        Duration(
            "How long an answer may take from the last body byte; SDKs give up at 10 s and send everything again",
            0.1,
            9,
            because="SDKs give up at 10 s and send everything again",
        ),
    ] = 5.0
    cors_origins: Annotated[
        tuple[str, ...],
        Several(
            'Web pages that may post here, e.g. ["http://localhost:3000"], or ["*"]; empty: none',
            item=parse_origin,
            empty_allowed=True,
        ),
    ] = ()
    api_keys_allowed_file: Annotated[
        Path | None, File("File of the API keys that are let in, one a line, re-read when it changes; empty: any key")
    ] = None
    strip_private_attributes: Annotated[
        bool, Flag("Take privateAttributes out before anything is stored, as SDKs do by themselves")
    ] = True
    suppress_resends: Annotated[
        bool, Flag("Store exact repeats of an SDK session once; they are billed twice otherwise (15 min window)")
    ] = True


class Queue(msgspec.Struct, frozen=True, kw_only=True):
    """The events on disk."""

    directory: Annotated[
        Path, Folder("Where events wait; the relay makes a folder in it that only its user can read")
    ] = Path("event-relay-data")
    bytes_max: Annotated[
        int,
        Size(
            "Database, write-ahead log and dead letters together; full is 503. In a pod: at most 75 % of the volume",
            64 * MIB,
            16 * TIB,
            because="32MiB of it are kept for the write-ahead log",
        ),
    ] = GIB
    disk_free_bytes_min: Annotated[
        int, Size("Refuse before the disk is full, since a full one cannot even be drained", 0, TIB)
    ] = 64 * MIB
    lane_bytes_share_max: Annotated[
        float, Share("How much one API key's events may fill while it backs off or is parked, once there are others")
    ] = 0.5
    lanes_max: Annotated[int, Whole("Most API keys with events at a time; each has a lane of its own", 1, 100_000)] = (
        1024
    )
    age_max: Annotated[
        float,
        Duration('Older events become dead letters, reason "expired"; never while their key is parked', 1, 3650 * DAY),
    ] = 7 * DAY
    dead_letter_bytes_max: Annotated[
        int,
        Size("Beyond it the oldest dead letters are dropped; left alone, it is at most an eighth of bytes_max", 0, TIB),
    ] = 128 * MIB


class Upstream(msgspec.Struct, frozen=True, kw_only=True):
    """The back door: where events go, and at what pace."""

    url: Annotated[str, Url("Where events are sent")] = "https://api.statsig.com/v1/log_event"
    success: Annotated[
        str,
        Choice(
            'What proves delivery; "statsig": 2xx and JSON without success:false; "status": any 2xx',
            ("statsig", "status"),
        ),
    ] = "statsig"
    api_key_file: Annotated[
        Path | None, File("File with the key for requests that carry none; re-read when it changes")
    ] = None
    proxy: Annotated[
        str | None, Url("Proxy for upstream; HTTPS_PROXY and its like are not trusted; empty: none", optional=True)
    ] = None
    ca_file: Annotated[Path | None, File("PEM of the authorities that upstream is checked by; empty: the system's")] = (
        None
    )
    client_cert_file: Annotated[Path | None, File("PEM of our certificate, where upstream asks for one")] = None
    client_key_file: Annotated[Path | None, File("PEM of its private key")] = None
    compression: Annotated[
        str, Choice("How batches travel; gzip costs least, it is how events are stored", ("gzip", "zstd", "none"))
    ] = "gzip"
    batch_events_max: Annotated[
        int, Whole("Most events in a batch; Statsig is documented to drop what goes beyond 1,000", 1, 10_000)
    ] = 1000
    batch_bytes_max: Annotated[
        int, Size("Largest batch before compression; Statsig takes 10 MB", 64 * KIB, 256 * MIB)
    ] = 4 * MIB
    in_flight_max: Annotated[int, Whole("Most batches under way at a time", 1, 1024)] = 8
    timeout_seconds: Annotated[float, Duration("One attempt, from connecting to the end of the answer", 0.1, HOUR)] = (
        30.0
    )
    connect_seconds_max: Annotated[float, Duration("Connecting, TLS included", 0.1, HOUR)] = 5.0
    events_per_second_max: Annotated[int, Whole("Ceiling on the pace of delivery; 0: none", 0, 1_000_000_000)] = 0
    retry_seconds_min: Annotated[float, Duration("First wait after a failure; doubles, with jitter", 0.01, DAY)] = 1.0
    retry_seconds_max: Annotated[float, Duration("Longest wait between attempts, Retry-After included", 0.01, DAY)] = (
        300.0
    )
    park_probe_seconds: Annotated[
        float, Duration("How often a refused key, or a host that is no Statsig, is tried again", 0.01, DAY)
    ] = 60.0


class Admin(msgspec.Struct, frozen=True, kw_only=True):
    """The operators' window."""

    address: Annotated[
        Address, Single("Metrics, health and status page, read-only; 0.0.0.0:9464 in a pod", item=parse_address)
    ] = Address("127.0.0.1", 9464)


class Shutdown(msgspec.Struct, frozen=True, kw_only=True):
    """How the relay stops."""

    drain_seconds_max: Annotated[
        float, Duration("How long a stop may go on delivering; what is left stays on disk for the next start", 0, HOUR)
    ] = 10.0


class Log(msgspec.Struct, frozen=True, kw_only=True):
    """What the relay says of itself."""

    level: Annotated[str, Choice("The least that is said", ("debug", "info", "warning", "error", "critical"))] = "info"
    format: Annotated[
        str, Choice('"auto": readable on a terminal, JSON lines elsewhere', ("auto", "console", "json"))
    ] = "auto"


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the operator chose, or left at its default; read and checked."""

    listen: Listen = Listen()
    queue: Queue = Queue()
    upstream: Upstream = Upstream()
    admin: Admin = Admin()
    shutdown: Shutdown = Shutdown()
    log: Log = Log()


SECTIONS: Final[dict[str, type[msgspec.Struct]]] = get_type_hints(Config)

SETTINGS: Final[dict[str, Kind]] = {
    f"{section}.{name}": hint.__metadata__[0]
    for section, struct in SECTIONS.items()
    for name, hint in get_type_hints(struct, include_extras=True).items()
}
"""Every setting by its full name, in the order of the file."""
