"""The program as it is called: exit codes, one line an error, help with examples, nothing loaded that is not needed."""

import argparse
import importlib
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from relay import __version__
from relay.__main__ import COMMANDS, Command, main

EXAMPLE_CONFIG = Path(__file__).parents[2] / "config.example.toml"


def relay(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    own = {name: text for name, text in os.environ.items() if not name.startswith("RELAY_")}
    return subprocess.run(
        [sys.executable, "-m", "relay", *words],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env=own | environ,
    )


@pytest.fixture
def command_that(tmp_path, monkeypatch):
    """Make a command whose `run` consists of the given code."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(code: str) -> Command:
        name = f"doorbell_{abs(hash(code))}"
        (tmp_path / f"{name}.py").write_text(
            "from relay import errors\n"
            "NAME = 'ring'\nHELP = 'ring once'\n"
            "def configure(parser):\n    parser.add_argument('--loud', action='store_true')\n"
            f"def run(arguments):\n    {code}\n",
            encoding="utf-8",
        )
        return Command("ring", name, "ring", "relay ring --loud")

    return make


@pytest.mark.parametrize(
    ("code", "exit_code", "stderr"),
    [
        ("return 0", 0, ""),
        ("return 3", 3, ""),
        ("return 0 if arguments.loud else 1", 0, ""),
        ("raise errors.ConfigError(['a: wrong', 'b: wrong'])", 2, "relay: a: wrong\nrelay: b: wrong\n"),
        ("raise errors.SpoolTooNew('a later release wrote it')", 2, "relay: a later release wrote it\n"),
        ("raise errors.SpoolForeign('not ours')", 2, "relay: not ours\n"),
        ("raise errors.SpoolUnfit('it is NFS')", 2, "relay: it is NFS\n"),
        ("raise errors.SpoolLocked('process 7 holds it')", 1, "relay: process 7 holds it\n"),
        ("raise errors.StoreFailed('the disk fails')", 1, "relay: the disk fails\n"),
        ("raise errors.RelayError('no relay answers')", 1, "relay: no relay answers\n"),
        ("raise KeyboardInterrupt", 130, ""),
    ],
)
def test_how_a_command_ends_is_its_exit_code_and_one_line_an_error(command_that, capsys, code, exit_code, stderr):
    assert main(["ring", "--loud"], commands=[command_that(code)]) == exit_code
    assert capsys.readouterr().err == stderr


def test_a_fault_of_ours_is_not_dressed_up_as_an_error_of_the_operator(command_that):
    with pytest.raises(ZeroDivisionError):
        main(["ring"], commands=[command_that("return 1 // 0")])


def test_a_command_that_is_not_called_is_not_imported(command_that):
    broken = Command("broken", "no_such_module", "break", "relay broken")
    assert main(["ring"], commands=[broken, command_that("return 0")]) == 0


@pytest.mark.parametrize("words", [["check-config"], ["status", "--help"], ["--version"], ["--help"]])
def test_a_short_command_loads_neither_server_nor_queue(words):
    code = (
        "import sys\nfrom relay.__main__ import main\n"
        f"try: main({words!r})\n"
        "except SystemExit: pass\n"
        "print(*sorted({'aiohttp', 'asyncio', 'persistqueue', 'structlog'} & set(sys.modules)), file=sys.stderr)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert process.stderr == "\n"


def test_the_version_is_printed():
    process = relay("--version")
    assert process.returncode == 0
    assert process.stdout.startswith(f"event-relay {__version__} (Python 3.")


def test_help_lists_every_command_with_an_example():
    process = relay("--help")
    assert process.returncode == 0
    for command in COMMANDS:
        assert f"    {command.name}" in process.stdout
        assert command.help in process.stdout
        assert f"\n  {command.example}" in process.stdout


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_is_what_the_doorbell_says_and_takes_its_own_example(command):
    module = importlib.import_module(command.module)
    assert command.name == module.NAME
    assert module.HELP
    parser = argparse.ArgumentParser()
    module.configure(parser)
    words = shlex.split(command.example)
    parser.parse_args(words[words.index(command.name) + 1 :])


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_has_help_with_an_example(command):
    process = relay(command.name, "--help")
    assert process.returncode == 0
    assert process.stdout.startswith(f"usage: relay {command.name}")
    assert re.search(rf"^  ([A-Z_]+=\S+ )*relay {command.name}\b", process.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "usage: relay"),
        (["chek-config"], "invalid choice: 'chek-config'"),
        (["check-config", "--confg", "x"], "unrecognized arguments: --confg"),
        (["check-config", "--conf", "x"], "unrecognized arguments: --conf"),
    ],
)
def test_a_command_line_that_is_not_understood_is_exit_2_and_says_why(words, said):
    process = relay(*words)
    assert process.returncode == 2
    assert said in process.stderr
    assert "Traceback" not in process.stderr


# ── check-config ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_check_config_prints_what_is_in_effect():
    process = relay("check-config", "--config", str(EXAMPLE_CONFIG), RELAY_QUEUE__BYTES_MAX="4GiB")
    assert (process.returncode, process.stderr) == (0, "")
    printed = tomllib.loads(process.stdout)
    assert printed["queue"]["bytes_max"] == "4GiB"
    assert printed["listen"] == tomllib.loads(EXAMPLE_CONFIG.read_text(encoding="utf-8"))["listen"]


def test_check_config_explains_each_setting_when_asked():
    process = relay("check-config", "--explain")
    assert EXAMPLE_CONFIG.read_text(encoding="utf-8").endswith(process.stdout)


def test_check_config_gives_a_line_an_error_and_exit_2(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text('[queue]\nbytes_mx = 1\nage_max = "soon"\n', encoding="utf-8")
    process = relay("check-config", "--config", str(path), RELAY_LOG__LEVEL="loud")
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr.splitlines() == [
        f"relay: {path}: queue.bytes_mx: unknown key; did you mean queue.bytes_max?",
        f'relay: {path}: queue.age_max = "soon": is not a duration; write "30s", "5m", "7d" or a number of seconds',
        'relay: RELAY_LOG__LEVEL: log.level = "loud": must be one of debug, info, warning, error, critical',
    ]


def test_check_config_says_that_the_file_is_missing(tmp_path):
    path = tmp_path / "none.toml"
    process = relay("check-config", "--config", str(path))
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr.startswith(f"relay: {path}: cannot be read: No such file or directory; ")
    assert process.stderr.count("\n") == 1


def test_check_config_says_which_named_files_cannot_be_read(tmp_path):
    (tmp_path / "key").write_text("secret-x", encoding="utf-8")
    pem = tmp_path / "none.pem"
    process = relay(
        "check-config",
        RELAY_UPSTREAM__API_KEY_FILE=str(tmp_path / "key"),
        RELAY_UPSTREAM__CA_FILE=str(pem),
        RELAY_LISTEN__API_KEYS_ALLOWED_FILE=str(tmp_path),
    )
    assert process.returncode == 0
    assert process.stderr.splitlines() == [
        f"relay: warning: listen.api_keys_allowed_file names {tmp_path}, which cannot be read here: Is a directory",
        f"relay: warning: upstream.ca_file names {pem}, which cannot be read here: No such file or directory",
    ]


def test_check_config_prints_no_credentials():
    process = relay("check-config", RELAY_UPSTREAM__PROXY="http://me:hunter2@proxy:3128")
    assert process.returncode == 0
    assert 'proxy = "http://***@proxy:3128"' in process.stdout
    assert "hunter2" not in process.stdout + process.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_goes_away_ends_the_command_without_a_traceback(unbuffered):
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.run(
        [sys.executable, "-m", "relay", "check-config"],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        timeout=30,
        check=False,
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
    )
    os.close(writing)
    assert (process.returncode, process.stderr) == (141, "")
