"""What the operator may choose: TOML and environment in, one frozen and checked Config out.

    config.toml ──┐                          settings   every setting: default, kind, bounds, why
                  ├─► loading ─► Config      kinds      what a setting may be, how it is read and written
    RELAY_A__B ───┘      │                   values     how sizes, durations, addresses are spelled
                      checks                 checks     what must hold between settings
                                             rendering  Config ─► TOML, nothing secret in it

Sizes are bytes, durations seconds, a file or proxy that is not set is None. All that is wrong is told at once, a line
each. Files that hold secrets are named here and read by the rooms that use them.
"""

from relay.config.loading import load
from relay.config.rendering import as_toml
from relay.config.settings import Admin, Config, Listen, Log, Queue, Shutdown, Upstream
from relay.config.values import Address

__all__ = ["Address", "Admin", "Config", "Listen", "Log", "Queue", "Shutdown", "Upstream", "as_toml", "load"]
