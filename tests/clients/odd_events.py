"""Events that real apps log and strict decoders refuse: (name, value, metadata), each name another."""

from __future__ import annotations

import math

PLAIN = 250


def odd_events() -> list[tuple[str, object, dict[str, str] | None]]:
    """Give a few hundred events, the odd ones first."""
    values: list[object] = [
        None,
        "",
        "text",
        "ünïcødé \N{PARTY POPPER} 日本",
        'quotes " and \\ and \n and \x00',
        "]},{[",
        0,
        -1,
        2**31,
        1.5,
        1e21,
        1e-9,
        "x" * 2000,
        2**64,
        10**30,
        math.nan,
        math.inf,
        -math.inf,
        "half an emoji: \ud83d",
    ]
    metadata: list[dict[str, str] | None] = [
        None,
        {},
        {"key with spaces": "v", "": "empty"},
        {"events": '[{"eventName":"nested"}]'},
        {"big": "y" * 5000},
        {"\N{KEY}": "\N{PARTY POPPER}", "half \ud83d": "half \ude00"},
    ]
    odd = [(f"odd-value-{n}", value, {"n": str(n)}) for n, value in enumerate(values)]
    odd += [(f"odd-metadata-{n}", "v", data) for n, data in enumerate(metadata)]
    odd += [(name, "v", None) for name in ("name with spaces", "naïve::name", "a[b]{c}<d>#=;&$%|", "é" * 100)]
    return odd + [(f"plain-{n}", n, {"n": str(n), "page": f"/p/{n % 7}"}) for n in range(PLAIN)]
