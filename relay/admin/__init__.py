"""The operators' window: read-only, on its own port; metrics, health, and one page that says how things stand.

    Snapshot + Trend ──headline──► a sentence ─┐
                     ──report────► a Report ───┴─► /status (JSON) ──► page.js, relay status
                                               └─► page ──► /       (the same words, rendered here)

All wording happens in `report` and `headline`, once; the page, its script and the terminal only lay it out. Whoever
serves imports `relay.admin.server` by name, so that those who only read a report load no HTTP server.
"""

from relay.admin.headline import Headline, headline
from relay.admin.report import Report, make_report

__all__ = ["Headline", "Report", "headline", "make_report"]
