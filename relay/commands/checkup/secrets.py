"""The files that the settings name: there, readable, and nobody else's where they are secret."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from relay.commands.checkup.finding import Finding, fail, ok, warn
from relay.keyfile import KeyFile
from relay.spool.folder import VOLATILE, file_system_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from relay.config import Config


def check_files(config: Config) -> Iterator[Finding]:
    """Each file that is named."""
    upstream = config.upstream
    for setting, path, keys, secret in (
        ("listen.api_keys_allowed_file", config.listen.api_keys_allowed_file, True, True),
        ("upstream.api_key_file", upstream.api_key_file, True, True),
        ("upstream.ca_file", upstream.ca_file, False, False),
        ("upstream.client_cert_file", upstream.client_cert_file, False, False),
        ("upstream.client_key_file", upstream.client_key_file, False, True),
    ):
        if path is not None:
            yield _check(setting, path, keys=keys, secret=secret)
    if upstream.api_key_file is None:
        yield ok("upstream.api_key_file", "not set: requests must bring their own key, as SDKs do")


def _check(setting: str, path: Path, *, keys: bool, secret: bool) -> Finding:
    try:
        mode = path.stat().st_mode
        file = KeyFile(path)
        file.load()
    except OSError as exc:
        return fail(setting, f"{path} cannot be read: {exc.strerror}", "mount it, or correct the path or its owner")
    if keys and not file.keys:
        return fail(setting, f"{path} holds no key", "put one key a line into it; lines that begin with # do not count")
    if secret and mode & 0o007 and file_system_of(path) not in VOLATILE:  # Kubernetes mounts secrets so, in memory
        return warn(setting, f"{path} may be read by everybody on this machine", f"chmod o= {path}")
    owner = "" if path.stat().st_uid == os.geteuid() else ", another user's"
    return ok(setting, f"{path} is readable{owner}" + (f", {len(file.keys)} keys" if keys else ""))
