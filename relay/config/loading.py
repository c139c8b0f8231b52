"""The file and the environment together become a Config, or every problem with them one ConfigError."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from msgspec.structs import replace

from relay.config.checks import find_conflicts, queue_holds, value_of
from relay.config.settings import SECTIONS, SETTINGS, Config
from relay.config.values import Unfit
from relay.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

PREFIX: Final = "RELAY_"
SEPARATOR: Final = "__"
DEAD_LETTER_SHARE: Final = 8
"""`queue.dead_letter_bytes_max` that was left alone is at most this part of `queue.bytes_max`."""

_TOML_PLACE: Final = re.compile(r"(?P<what>.*) \(at (?:line (?P<line>\d+), column (?P<column>\d+)|end of document)\)")


class _Given(NamedTuple):
    """A value as the operator wrote it, and where."""

    raw: object
    source: str


def load(path: Path | None, environ: Mapping[str, str]) -> Config:
    """Read the file, if there is one, and let `RELAY_SECTION__KEY` of `environ` override it.

    Raises ConfigError with every problem found: unknown keys, bad values, and values that cannot stand together.
    """
    problems: list[str] = []
    given: dict[str, _Given] = {}
    if path is not None:
        given.update(_from_file(path, problems))
    given.update(_from_environment(environ, problems))
    values, unread = _read(given, problems)
    config = _build(values)
    problems += [
        _describe(conflict.keys[0], conflict.reason, given, config)
        for conflict in find_conflicts(config)
        if unread.isdisjoint(conflict.keys)
    ]
    if problems:
        raise ConfigError(problems)
    return config


def _from_file(path: Path, problems: list[str]) -> dict[str, _Given]:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        problems.append(f"{path}: cannot be read: {error.strerror}; name the file with --config, or leave it out")
    except UnicodeDecodeError as error:
        problems.append(f"{path}: is not UTF-8 at byte {error.start}; save it as UTF-8")
    except tomllib.TOMLDecodeError as error:
        problems.append(_describe_syntax(path, str(error)))
    else:
        return dict(_flatten(document, str(path), problems))
    return {}


def _flatten(document: Mapping[str, Any], source: str, problems: list[str]) -> Iterator[tuple[str, _Given]]:
    for section, table in document.items():
        if section not in SECTIONS:
            problems.append(f"{source}: {_describe_unknown(section)}")
        elif not isinstance(table, dict):
            problems.append(f"{source}: {section} is a section; write [{section}] on a line, its keys below")
        else:
            for name, raw in table.items():
                key = f"{section}.{name}"
                if key in SETTINGS:
                    yield key, _Given(raw, source)
                else:
                    problems.append(f"{source}: {_describe_unknown(key)}")


def _from_environment(environ: Mapping[str, str], problems: list[str]) -> dict[str, _Given]:
    """Take what is ours; Kubernetes puts RELAY_SERVICE_HOST and its like beside it for a service called relay."""
    variables = {_variable(key): key for key in SETTINGS}
    one_underscore = {variable.replace(SEPARATOR, "_"): variable for variable in variables}
    given = {}
    for variable in sorted(name for name in environ if name.startswith(PREFIX)):
        if variable in variables:
            given[variables[variable]] = _Given(environ[variable], variable)
        elif variable in one_underscore:
            problems.append(f"{variable}: unknown variable; write {one_underscore[variable]}, with two underscores")
        elif SEPARATOR in variable:
            key = variable.removeprefix(PREFIX).replace(SEPARATOR, ".", 1).lower()
            near = _nearest(key)
            problems.append(f"{variable}: unknown variable" + (f"; did you mean {_variable(near)}?" if near else ""))
    return given


def _read(given: Mapping[str, _Given], problems: list[str]) -> tuple[dict[str, object], set[str]]:
    """Read what can be read; give the values, and the keys of those that cannot."""
    values, unread = {}, set()
    for key, (raw, source) in given.items():
        kind = SETTINGS[key]
        try:
            values[key] = kind.read(raw)
        except Unfit as error:
            unread.add(key)
            problems.append(f"{source}: {key} = {kind.shown(raw)}: {error}")
    return values, unread


def _build(values: Mapping[str, object]) -> Config:
    by_section: dict[str, dict[str, object]] = defaultdict(dict)
    for key, value in values.items():
        section, _, name = key.partition(".")
        by_section[section][name] = value
    defaults = Config()
    config = replace(
        defaults, **{section: replace(getattr(defaults, section), **given) for section, given in by_section.items()}
    )
    listen, queue = config.listen, config.queue
    if "listen.inflated_bytes_max" not in values:
        fitting = max(queue_holds(queue.bytes_max), listen.event_bytes_max)
        listen = replace(listen, inflated_bytes_max=min(listen.inflated_bytes_max, fitting))
    if "queue.dead_letter_bytes_max" not in values:
        fitting = queue.bytes_max // DEAD_LETTER_SHARE
        queue = replace(queue, dead_letter_bytes_max=min(queue.dead_letter_bytes_max, fitting))
    return replace(config, listen=listen, queue=queue)


def _describe(key: str, reason: str, given: Mapping[str, _Given], config: Config) -> str:
    if key in given:
        return f"{given[key].source}: {key} = {SETTINGS[key].shown(given[key].raw)}: {reason}"
    return f"default: {key} = {SETTINGS[key].write(value_of(config, key))}: {reason}"


def _describe_unknown(key: str) -> str:
    section, dot, _ = key.partition(".")
    near = _nearest(key)
    if near:
        return f"{key}: unknown key; did you mean {near}?"
    if dot:
        names = ", ".join(setting.partition(".")[2] for setting in SETTINGS if setting.startswith(f"{section}."))
        return f"{key}: unknown key; [{section}] has {names}"
    return f"{key}: unknown section; there are {', '.join(SECTIONS)}"


def _nearest(key: str) -> str | None:
    """Find what was probably meant: a section, a whole key, or a key that stands in another section."""
    if "." not in key:
        sections = difflib.get_close_matches(key, SECTIONS, n=1)
        if sections:
            return f"[{sections[0]}]"
    name = key.rpartition(".")[2]
    names = {setting.partition(".")[2]: setting for setting in reversed(SETTINGS)}
    if name in names:
        return names[name]
    whole = difflib.get_close_matches(key, SETTINGS, n=1, cutoff=0.75)
    alone = difflib.get_close_matches(name, names, n=1, cutoff=0.75)
    return whole[0] if whole else names[alone[0]] if alone else None


def _describe_syntax(path: Path, text: str) -> str:
    match = _TOML_PLACE.fullmatch(text)
    what = match["what"] if match else text
    place = f"line {match['line']}, column {match['column']}" if match and match["line"] else "at its end"
    return f'{path}: {place}: {what}; texts, sizes ("1GiB") and durations ("30s") need quotes'


def _variable(key: str) -> str:
    return PREFIX + key.replace(".", SEPARATOR).upper()
