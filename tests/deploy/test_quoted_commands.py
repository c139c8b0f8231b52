"""Every `relay …` that a page, a rule, a help text or an error message quotes is one that the command line takes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from relay.__main__ import parse

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PAGES = ("*.md", "config.example.toml", "deploy/**/*.*", "relay/**/*.py")
PLACEHOLDERS = {"LANE": "3f1c9a02", "ID": "1207", "REASON": "rejected"}
"""Words in capitals that a reader replaces, where the option does not take any word at all."""
CODE = re.compile(
    r"^ *```\w*\n(.*?)^ *```|``?([^`\n]+)`|\"(relay (?:[^\":\n]|:\S)+)\"|^ExecStart=(.*)$", re.DOTALL | re.MULTILINE
)
"""Fenced and inline code, the examples of the help texts, and what the unit starts."""
COMMAND = re.compile(r"(?:^|[\s/])relay +(?=[a-z-])([^#<>|&;()…\n]*)", re.MULTILINE)
IN_GENERAL = ("queue", "dlq")
"""`relay queue …` stands for all its verbs."""


def quoted(text: str) -> Iterator[list[str]]:
    """Give the words of each command line that a text quotes, without `relay`."""
    for pieces in CODE.findall(text):
        for line in COMMAND.findall("".join(pieces)):
            words = [PLACEHOLDERS.get(word, word) for word in line.split()]
            if " ".join(words) not in IN_GENERAL:
                yield words


def misunderstood(text: str) -> list[str]:
    """Give the quoted command lines that the relay does not understand."""
    wrong = []
    for words in quoted(text):
        try:
            parse(words)
        except SystemExit as ended:
            if ended.code:
                wrong.append(" ".join(words))
    return wrong


@pytest.fixture(scope="module")
def pages(root: Path) -> dict[str, str]:
    found = sorted({path for pattern in PAGES for path in root.glob(pattern) if path.is_file()})
    return {str(path.relative_to(root)): path.read_text(encoding="utf-8") for path in found}


def test_every_quoted_command_line_is_understood(pages: dict[str, str]) -> None:
    assert {name: wrong for name, text in pages.items() if (wrong := misunderstood(text))} == {}


def test_the_pages_that_people_follow_quote_command_lines(pages: dict[str, str]) -> None:
    counts = {name: len(list(quoted(text))) for name, text in pages.items()}
    assert counts["deploy/runbook.md"] > 30
    assert counts["README.md"] > 10
    assert counts["deploy/systemd/event-relay.service"] == 1
    assert counts["relay/commands/dlq.py"] == 5
    assert counts["relay/__main__.py"] >= 8


@pytest.mark.parametrize(
    "text",
    [
        "`relay statsu`",
        "`relay queue peek --lanes 3f1c9a02`",
        "`sudo /opt/event-relay/bin/relay dlq purge --older 30d`",
        "```sh\nkubectl exec POD -c event-relay -- relay dlq replay --reason expird\n```",
        "`relay dlq show`",
        "`relay queue rekey < FILE`",
        "ExecStart=/opt/event-relay/bin/relay run --cofig /etc/event-relay/config.toml",
    ],
)
def test_the_check_sees_a_misspelt_command_option_or_value_and_one_that_is_missing(text: str) -> None:
    assert len(misunderstood(text)) == 1
