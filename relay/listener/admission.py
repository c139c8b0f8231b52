"""What the head of a request alone decides: path, origin, method, key and announced size."""

from __future__ import annotations

from typing import TYPE_CHECKING

from relay import wire
from relay.errors import KeysUnknown, MethodNotAllowed, PathUnknown, TooLarge, Unauthorized

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from relay.listener import simple
    from relay.listener.origins import Origins

_ANY_PATH = "*"  # of `OPTIONS *`, which asks the server as a whole


class Admission:
    """Holds the operator's rules on who may post where. Knows no HTTP library: texts and mappings go in."""

    def __init__(
        self,
        *,
        paths: Sequence[str],
        origins: Origins,
        allowed_keys: Callable[[], Collection[str] | None],
        keyless_taken: bool,
        request_bytes_max: int,
    ) -> None:
        """`allowed_keys` gives the operator's list as it stands, None for any key."""
        self._paths = frozenset(_tidy(path) for path in paths)
        self._origins = origins
        self._allowed_keys = allowed_keys
        self._keyless_taken = keyless_taken
        self._request_bytes_max = request_bytes_max

    def check_place(self, method: str, path: str, headers: Mapping[str, str]) -> None:
        """Raise PathUnknown, OriginForbidden or MethodNotAllowed; `path` is without its query."""
        if path not in self._paths and _tidy(path) not in self._paths and (method, path) != ("OPTIONS", _ANY_PATH):
            raise PathUnknown(f"events are taken at {', '.join(sorted(self._paths))}; see listen.paths")
        self._origins.check(headers)
        if method not in ("POST", "OPTIONS"):
            raise MethodNotAllowed("events are sent by POST")

    def read_head(self, headers: Mapping[str, str], raw_query: str) -> wire.Head:
        """Read what the request says about itself; `raw_query` as it was sent. Raises Unauthorized or KeysUnknown."""
        head = wire.read_head(headers, raw_query)
        self.check_key(head.key)
        return head

    def check_simple(self, head: simple.Head, size: int) -> None:
        """Check all of a simple request, which is a POST of no web page; raises what the others here raise."""
        if head.path not in self._paths:
            self.check_place("POST", head.path, head.headers)
        self.check_size(size)
        self.check_key(head.about.key)

    def check_size(self, size: int) -> None:
        """Raise TooLarge for a body of more bytes on the wire than the operator allows."""
        if size > self._request_bytes_max:
            raise TooLarge(f"the body is larger than {self._request_bytes_max} bytes (listen.request_bytes_max)")

    def check_key(self, key: str) -> None:
        """Raise Unauthorized or KeysUnknown for a key that may not post, or for none where one is needed."""
        allowed = self._allowed_keys()
        if not key and (allowed is not None or not self._keyless_taken):
            raise Unauthorized("no key: send it in the header statsig-api-key or in the query as k=")
        if allowed is None:
            return
        if not allowed:
            raise KeysUnknown("listen.api_keys_allowed_file holds no key yet, so nobody can be let in")
        if key not in allowed:
            raise Unauthorized("this key is not in the relay's listen.api_keys_allowed_file")


def _tidy(path: str) -> str:
    """Forgive doubled and trailing slashes: a 404 makes an SDK drop its events."""
    return "/" + "/".join(part for part in path.split("/") if part)
