"""The status page as one HTML document, complete without its script; pure but for its three files read at import."""

from __future__ import annotations

import base64
import hashlib
from html import escape
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING, Final

from relay.admin.report import CHART_HEIGHT, CHART_WIDTH

if TYPE_CHECKING:
    from relay.admin.report import Cell, Column, Fact, Report, Table

_FOLDER: Final = files("relay.admin")
_STYLE: Final = (_FOLDER / "page.css").read_text("utf-8")
_SCRIPT: Final = (_FOLDER / "page.js").read_text("utf-8")
_PAGE: Final = Template((_FOLDER / "page.html").read_text("utf-8"))


def _source(text: str) -> str:
    """Name an inline style or script by its hash, so that the browser runs that one and no other."""
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


CONTENT_SECURITY_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        f"style-src {_source(_STYLE)}",
        f"script-src {_source(_SCRIPT)}",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)


def render(report: Report) -> bytes:
    """Lay a report out as HTML."""
    view = report.view
    parts = {
        "title": view.title,
        "tone": report.headline.tone,
        "lead": report.headline.lead,
        "rest": report.headline.rest,
        "chart_line": view.chart.line,
        "chart_area": view.chart.area,
        "chart_top": view.chart.top,
        "chart_description": view.chart.description,
        "footer": view.footer,
    }
    return _PAGE.substitute(
        {name: escape(text) for name, text in parts.items()},
        style=_STYLE,
        script=_SCRIPT,
        chart_width=CHART_WIDTH,
        chart_height=CHART_HEIGHT,
        facts="".join(map(_fact, view.facts)),
        lanes=_table("lanes", view.lanes),
        attempts=_table("attempts", view.attempts),
        dead_letters=_table("dead_letters", view.dead_letters),
    ).encode()


def _fact(fact: Fact) -> str:
    bar = ""
    if fact.share is not None:
        bar = (
            '<svg class="bar" viewBox="0 0 100 4" preserveAspectRatio="none" aria-hidden="true">'
            f'<rect width="100" height="4"/><rect class="used" width="{fact.share * 100:.1f}" height="4"/></svg>'
        )
    return (
        f'<div class="fact" data-tone="{fact.tone}"><dt>{escape(fact.label)}</dt>'
        f"<dd><strong>{escape(fact.value)}</strong>{bar}<span>{escape(fact.note)}</span></dd></div>\n"
    )


def _table(name: str, table: Table) -> str:
    heads = "".join(f'<th scope="col"{_number(column)}>{escape(column.name)}</th>' for column in table.columns)
    rows = "".join(_row(table.columns, row) for row in table.rows)
    return (
        f'<section id="{name}" aria-labelledby="{name}-name"><h2 id="{name}-name">{escape(table.name)}</h2>\n'
        f"<table{'' if rows else ' hidden'}><thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}</tbody></table>\n"
        f'<p class="empty"{" hidden" if rows else ""}>{escape(table.empty)}</p>\n'
        f'<p class="note">{escape(table.note)}</p></section>\n'
    )


def _row(columns: tuple[Column, ...], row: tuple[Cell, ...]) -> str:
    return "<tr>" + "".join(map(_cell, columns, row)) + "</tr>\n"


def _cell(column: Column, cell: Cell) -> str:
    tone = f' data-tone="{cell.tone}"' if cell.tone else ""
    return f'<td data-label="{escape(column.name)}"{tone}{_number(column)}>{escape(cell.text)}</td>'


def _number(column: Column) -> str:
    return ' class="number"' if column.number else ""
