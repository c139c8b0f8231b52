"""The hallway: opens the rooms back to front, closes them front to back; the only one that knows everyone.

opening   folder (flock) ─► listener and admin bound, requests wait ─► store ─► spool ─► forwarder ─► ready
closing   readiness off ─► drain ─► listener answers all and closes ─► forwarder ─► spool's last commit ─► folder
"""

from relay.app.daemon import serve

__all__ = ["serve"]
