"""The runbook: complete for every alert, every link leads somewhere, every metric and setting in it exists."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from relay.config.settings import SETTINGS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(scope="module", params=["runbook.md", "README.md"])
def page(request: pytest.FixtureRequest, deploy: Path) -> str:
    return (deploy / request.param).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def runbook(deploy: Path) -> str:
    return (deploy / "runbook.md").read_text(encoding="utf-8")


def test_every_entry_says_what_it_means_what_is_lost_where_to_look_and_what_to_do(runbook: str) -> None:
    entries = re.split(r"^### ", runbook, flags=re.MULTILINE)[1:]
    assert len(entries) == 17, "one for each alert, and one for a damaged file"
    for entry in entries:
        name = entry.splitlines()[0]
        for part in ("**Means**", "**Lost**", "**Look here**", "**Afterwards**"):
            assert part in entry, f"{name} has no {part}"
        assert "**do this**" in entry.lower() or "| do |" in entry, f"{name} does not say what to do"


def test_every_link_leads_somewhere(page: str, deploy: Path, runbook_anchors: frozenset[str]) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page):
        path, _, anchor = target.partition("#")
        if path.startswith("http"):
            continue
        assert not path or (deploy / path).exists(), target
        if anchor and path in {"", "runbook.md"}:
            assert anchor in runbook_anchors, target


def test_every_query_asks_for_what_a_relay_exposes(page: str, unknown_in: Callable[[str], list[str]]) -> None:
    assert [problem for code in re.findall(r"`([^`\n]+)`", page) for problem in unknown_in(code)] == []


def test_every_setting_exists(page: str) -> None:
    named = re.findall(r"\b((?:listen|queue|upstream|admin|shutdown|log)\.[a-z_]+)\b", page)
    assert set(named) <= set(SETTINGS)
