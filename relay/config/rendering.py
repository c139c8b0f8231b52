"""A Config as the TOML that would load it again, nothing secret in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from relay.config.settings import SECTIONS, SETTINGS

if TYPE_CHECKING:
    from relay.config.settings import Config


def as_toml(config: Config, *, explain: bool = False) -> str:
    """Write every setting under its section; with `explain`, each below its one line why and its bounds.

    Credentials and queries of URLs are hidden, so of those alone the text does not load as the same Config.
    """
    return "\n".join(_section(config, section, explain=explain) for section in SECTIONS)


def _section(config: Config, section: str, *, explain: bool) -> str:
    lines = [f"[{section}]"]
    values = getattr(config, section)
    for name in values.__struct_fields__:
        kind = SETTINGS[f"{section}.{name}"]
        if explain:
            bounds = kind.bounds()
            lines.append(f"# {kind.why}" + (f" ({bounds})" if bounds else ""))
        lines.append(f"{name} = {kind.write(getattr(values, name))}")
    return "\n".join(lines) + "\n"
