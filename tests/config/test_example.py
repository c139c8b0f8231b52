"""The example file and the printed settings, held against the code."""

import tomllib
from pathlib import Path

import msgspec
import pytest

from relay.config import Config, as_toml, load
from relay.config.settings import SECTIONS, SETTINGS

EXAMPLE = Path(__file__).parents[2] / "config.example.toml"


def test_the_example_loads_as_the_defaults():
    assert load(EXAMPLE, {}) == Config()


def test_the_example_names_every_setting_and_no_other():
    document = tomllib.loads(EXAMPLE.read_text(encoding="utf-8"))
    assert [f"{section}.{name}" for section, table in document.items() for name in table] == list(SETTINGS)


def test_every_key_of_the_example_follows_a_line_that_says_why():
    lines = EXAMPLE.read_text(encoding="utf-8").splitlines()
    keys = [number for number, line in enumerate(lines) if " = " in line and not line.startswith("#")]
    assert len(keys) == len(SETTINGS)
    assert [lines[number] for number in keys if not lines[number - 1].startswith("# ")] == []


def test_the_example_is_what_the_code_explains():
    text = EXAMPLE.read_text(encoding="utf-8")
    assert text[text.index("[listen]") :] == as_toml(Config(), explain=True)


@pytest.mark.parametrize("explain", [False, True])
def test_what_is_printed_loads_as_the_same_settings(tmp_path, explain):
    environ = {
        "RELAY_LISTEN__ADDRESS": "unix:/run/a b.sock,0.0.0.0:9463",
        "RELAY_LISTEN__CORS_ORIGINS": "http://localhost:3000",
        "RELAY_QUEUE__DIRECTORY": 'C:\\"x"/ü',
        "RELAY_QUEUE__BYTES_MAX": "67108865",
        "RELAY_QUEUE__AGE_MAX": "36h",
        "RELAY_UPSTREAM__API_KEY_FILE": "/run/key",
        "RELAY_UPSTREAM__RETRY_SECONDS_MIN": "0.125",
        "RELAY_LOG__LEVEL": "debug",
    }
    config = load(None, environ)
    printed = tmp_path / "printed.toml"
    printed.write_text(as_toml(config, explain=explain), encoding="utf-8")
    assert load(printed, {}) == config
    assert config != Config()


def test_what_is_printed_holds_no_credentials():
    config = load(
        None,
        {
            "RELAY_UPSTREAM__PROXY": "http://me:hunter2@proxy:3128",
            "RELAY_UPSTREAM__URL": "https://me:hunter2@host/v1?k=hunter2",
        },
    )
    printed = as_toml(config)
    assert "hunter2" not in printed
    assert 'proxy = "http://***@proxy:3128"' in printed
    assert 'url = "https://***@host/v1?***"' in printed


def test_every_setting_says_why_in_a_line_of_its_own():
    for kind in SETTINGS.values():
        assert kind.why
        assert "\n" not in kind.why


def test_every_default_is_a_value_that_its_own_setting_takes():
    for key, kind in SETTINGS.items():
        section, _, name = key.partition(".")
        default = getattr(getattr(Config(), section), name)
        assert kind.read(tomllib.loads(f"x = {kind.write(default)}")["x"]) == default


def test_a_config_cannot_be_changed():
    for struct in (Config, *SECTIONS.values()):
        assert struct.__struct_config__.frozen
        assert issubclass(struct, msgspec.Struct)
