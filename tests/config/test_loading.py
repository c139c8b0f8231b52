"""File and environment in, Config or every problem out."""

from pathlib import Path

import pytest

from relay.config import Address, Config, load
from relay.config.checks import queue_holds
from relay.config.settings import SETTINGS
from relay.errors import ConfigError, QueueFull
from relay.spool.folder import Space
from relay.spool.room import Room
from relay.spool.store import Store

MIB = 1024 * 1024
TWO_ADDRESSES = (Address("127.0.0.1", 1), Address("::1", 2, ipv6=True))


@pytest.fixture
def config_file(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "config.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def problems_of(path: Path | None = None, environ: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path, environ or {})
    return caught.value.problems


def problem_of(path: Path | None = None, environ: dict[str, str] | None = None) -> str:
    (problem,) = problems_of(path, environ)
    return problem


def test_nothing_given_gives_the_defaults():
    assert load(None, {}) == Config()


def test_values_of_the_file_reach_the_config(config_file):
    config = load(
        config_file(
            '[listen]\naddress = "unix:/run/relay.sock"\npaths = ["/a", "/b"]\n'
            '[queue]\nbytes_max = "4GiB"\nage_max = "2d"\nlane_bytes_share_max = 1\n'
            '[upstream]\napi_key_file = "/run/key"\nproxy = "http://proxy:3128"\ntimeout_seconds = 12.5\n'
            '[log]\nlevel = "debug"\n'
        ),
        {},
    )
    assert config.listen.address == (Address(path="/run/relay.sock"),)
    assert config.listen.paths == ("/a", "/b")
    assert config.queue.bytes_max == 4096 * MIB
    assert config.queue.age_max == 2 * 86400.0
    assert config.queue.lane_bytes_share_max == 1.0
    assert config.upstream.api_key_file == Path("/run/key")
    assert config.upstream.proxy == "http://proxy:3128"
    assert config.upstream.timeout_seconds == 12.5
    assert config.log.level == "debug"


def test_the_environment_overrides_the_file(config_file):
    path = config_file('[queue]\nbytes_max = "4GiB"\nlanes_max = 7\n')
    config = load(path, {"RELAY_QUEUE__BYTES_MAX": "2GiB", "PATH": "/bin"})
    assert (config.queue.bytes_max, config.queue.lanes_max) == (2048 * MIB, 7)


@pytest.mark.parametrize(
    ("variable", "text", "section", "name", "value"),
    [
        ("RELAY_LISTEN__ADDRESS", "127.0.0.1:1, [::1]:2", "listen", "address", TWO_ADDRESSES),
        ("RELAY_LISTEN__ADDRESS", '["127.0.0.1:1", "[::1]:2"]', "listen", "address", TWO_ADDRESSES),
        ("RELAY_LISTEN__CORS_ORIGINS", "", "listen", "cors_origins", ()),
        ("RELAY_LISTEN__CORS_ORIGINS", "*", "listen", "cors_origins", ("*",)),
        ("RELAY_LISTEN__EVENTS_PER_REQUEST_MAX", "5", "listen", "events_per_request_max", 5),
        ("RELAY_LISTEN__SUPPRESS_RESENDS", "false", "listen", "suppress_resends", False),
        ("RELAY_QUEUE__LANE_BYTES_SHARE_MAX", "0.25", "queue", "lane_bytes_share_max", 0.25),
        ("RELAY_QUEUE__AGE_MAX", "1.5h", "queue", "age_max", 5400.0),
        ("RELAY_UPSTREAM__API_KEY_FILE", "", "upstream", "api_key_file", None),
        ("RELAY_UPSTREAM__PROXY", "", "upstream", "proxy", None),
        ("RELAY_ADMIN__ADDRESS", "10.0.0.1:9464", "admin", "address", Address("10.0.0.1", 9464)),
        ("RELAY_SHUTDOWN__DRAIN_SECONDS_MAX", "0", "shutdown", "drain_seconds_max", 0.0),
        ("RELAY_LOG__FORMAT", "json", "log", "format", "json"),
    ],
)
def test_every_form_of_value_can_come_from_the_environment(variable, text, section, name, value):
    assert getattr(getattr(load(None, {variable: text}), section), name) == value


@pytest.mark.parametrize("key", SETTINGS)
def test_every_setting_can_be_given_by_its_variable(key):
    variable = "RELAY_" + key.replace(".", "__").upper()
    (problem,) = problems_of(environ={variable: "\x00"})
    assert problem.startswith(f"{variable}: {key} = ")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[queue]\nbytes_mx = 1", "queue.bytes_mx: unknown key; did you mean queue.bytes_max?"),
        ("[queue]\nbytes-max = 1", "queue.bytes-max: unknown key; did you mean queue.bytes_max?"),
        ("[upstream]\naddress = 1", "upstream.address: unknown key; did you mean listen.address?"),
        ("[upstrem]\nurl = 1", "upstrem: unknown key; did you mean [upstream]?"),
        ("bytes_max = 1", "bytes_max: unknown key; did you mean queue.bytes_max?"),
        ("queue = 1", "queue is a section; write [queue] on a line, its keys below"),
        ("[[queue]]\nbytes_max = 1", "queue is a section; write [queue] on a line, its keys below"),
        ("[log]\nzzz = 1", "log.zzz: unknown key; [log] has level, format"),
        ("[zzz]", "zzz: unknown section; there are listen, queue, upstream, admin, shutdown, log"),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(config_file, text, line):
    path = config_file(text)
    assert problem_of(path) == f"{path}: {line}"


@pytest.mark.parametrize(
    ("variable", "line"),
    [
        ("RELAY_QUEUE__BYTES_MX", "unknown variable; did you mean RELAY_QUEUE__BYTES_MAX?"),
        ("RELAY_QEUE__BYTES_MAX", "unknown variable; did you mean RELAY_QUEUE__BYTES_MAX?"),
        ("RELAY_QUEUE_BYTES_MAX", "unknown variable; write RELAY_QUEUE__BYTES_MAX, with two underscores"),
        ("RELAY_FOO__BAR", "unknown variable"),
    ],
)
def test_an_unknown_variable_names_the_nearest_known_one(variable, line):
    assert problem_of(environ={variable: "1"}).startswith(f"{variable}: {line}")


def test_variables_that_kubernetes_makes_for_a_service_called_relay_are_left_alone():
    environ = {"RELAY_SERVICE_HOST": "10.0.0.1", "RELAY_PORT_9463_TCP_ADDR": "10.0.0.1", "RELAY_PORT": "tcp://10.0.0.1"}
    assert load(None, environ) == Config()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('queue.bytes_max = "lots"', 'queue.bytes_max = "lots": is not a size'),
        ("queue.bytes_max = true", "queue.bytes_max = true: is not a size"),
        ('queue.bytes_max = "1MiB"', 'queue.bytes_max = "1MiB": must be 64MiB to 16TiB'),
        ("queue.bytes_max = -1", "queue.bytes_max = -1: must be 64MiB"),
        ("queue.age_max = nan", "queue.age_max = NaN: must be 1s to 3650d"),
        ("queue.age_max = inf", "queue.age_max = Infinity: must be"),
        ("queue.age_max = 2024-01-01", 'queue.age_max = "2024-01-01": is not a duration'),
        ("queue.lanes_max = 0", "queue.lanes_max = 0: must be 1 to 100,000"),
        ("queue.lanes_max = 1.5", "queue.lanes_max = 1.5: is not a whole number"),
        ("queue.lane_bytes_share_max = 0", "queue.lane_bytes_share_max = 0: is not a share"),
        ('queue.directory = ""', 'queue.directory = "": must name a folder'),
        ("listen.answer_seconds_max = 10", "listen.answer_seconds_max = 10: must be 0.1s to 9s: SDKs give up at 10 s"),
        ("listen.strip_private_attributes = 1", "listen.strip_private_attributes = 1: is neither true nor false"),
        ("listen.address = []", "listen.address = []: must name at least one"),
        ("listen.address = [1]", "listen.address = [1]: is not a list of texts"),
        ("listen.paths = {}", "listen.paths = {}: is not a list of texts"),
        ('listen.paths = ["v1"]', 'listen.paths = ["v1"]: "v1" is not a path'),
        ('listen.paths = ["/a", "/a"]', 'listen.paths = ["/a", "/a"]: names /a twice'),
        ('listen.address = ["[::1]:1", "[0::1]:1"]', 'listen.address = ["[::1]:1", "[0::1]:1"]: names [::1]:1 twice'),
        ("upstream.url = 1", "upstream.url = 1: is not a text"),
        ('upstream.url = ""', 'upstream.url = "": must start with'),
        ('upstream.success = "yes"', 'upstream.success = "yes": must be one of statsig, status'),
        ('upstream.compression = "br"', 'upstream.compression = "br": must be one of gzip, zstd, none'),
        ("upstream.compression = []", "upstream.compression = []: must be one of gzip, zstd, none"),
        ('admin.address = "9464"', 'admin.address = "9464": is not an address'),
        ('log.level = "INFO"', 'log.level = "INFO": must be one of debug, info'),
    ],
)
def test_a_bad_value_is_shown_with_its_key_and_the_reason(config_file, text, line):
    path = config_file(text)
    assert problem_of(path).startswith(f"{path}: {line}")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('listen.event_bytes_max = "65MiB"', "must be at most listen.inflated_bytes_max (64MiB)"),
        ('listen.inflated_bytes_max = "97MiB"', "must be at most listen.memory_bytes_max (96MiB)"),
        ('queue.dead_letter_bytes_max = "2GiB"', "must be at most queue.bytes_max (1GiB)"),
        ("upstream.retry_seconds_min = 301", "must be at most upstream.retry_seconds_max (300)"),
        ("upstream.connect_seconds_max = 31", "must be at most upstream.timeout_seconds (30)"),
        ('upstream.batch_bytes_max = "512KiB"', "must be at least 786432"),
        ('upstream.client_cert_file = "/c"', "needs upstream.client_key_file beside it"),
        ('upstream.client_key_file = "/k"', "needs upstream.client_cert_file beside it"),
        ('admin.address = "127.0.0.1:9463"', "is taken by listen.address (127.0.0.1:9463)"),
        ('admin.address = "0.0.0.0:9463"', "is taken by listen.address (127.0.0.1:9463)"),
        ('listen.address = ["0.0.0.0:1", "127.0.0.1:1"]', "cannot have both 0.0.0.0:1 and 127.0.0.1:1"),
        (
            'upstream.url = "http://127.0.0.1:9463/v1"',
            "leads back to the relay itself, listen.address (127.0.0.1:9463)",
        ),
        ('upstream.url = "http://[::1]:9463/v1"', "leads back to the relay itself, listen.address ([::1]:9463)"),
        ('upstream.url = "http://127.0.0.1:9464/v1"', "leads back to the relay itself, admin.address"),
        ('upstream.proxy = "http://127.0.0.1:9463"', "leads back to the relay itself, listen.address"),
    ],
)
def test_values_that_cannot_stand_together_are_refused(config_file, text, line):
    path = config_file(text)
    problem = problem_of(path)
    assert problem.startswith(f"{path}: {text.partition(' ')[0]} = ")
    assert line in problem


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://localhost:1/v1", "127.0.0.1:1"),
        ("http://127.0.0.1:1/v1", "localhost:1"),
        ("http://127.0.0.1:1/v1", "0.0.0.0:1"),
        ("http://localhost:1/v1", "[::]:1"),
        ("http://0.0.0.0:1/v1", "127.0.0.1:1"),
        ("http://relay:1/v1", "relay:1"),
        ("http://127.0.0.1/v1", "127.0.0.1:80"),
        ("https://127.0.0.1/v1", "127.0.0.1:443"),
    ],
)
def test_an_upstream_that_is_the_relay_itself_is_refused(url, address):
    environ = {"RELAY_UPSTREAM__URL": url, "RELAY_LISTEN__ADDRESS": address}
    assert "leads back to the relay itself" in problem_of(environ=environ)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://127.0.0.1:2/v1", "127.0.0.1:1"),
        ("http://127.0.0.2:1/v1", "127.0.0.1:1"),
        ("http://gateway:1/v1", "127.0.0.1:1"),
        ("http://gateway:1/v1", "0.0.0.0:1"),
        ("http://localhost:1/v1", "unix:/run/relay.sock"),
    ],
)
def test_an_upstream_elsewhere_is_taken(url, address):
    assert load(None, {"RELAY_UPSTREAM__URL": url, "RELAY_LISTEN__ADDRESS": address}).upstream.url == url


def test_a_free_port_may_be_asked_for_twice():
    config = load(None, {"RELAY_LISTEN__ADDRESS": "127.0.0.1:0", "RELAY_ADMIN__ADDRESS": "127.0.0.1:0"})
    assert config.listen.address == (config.admin.address,)


def test_a_default_that_conflicts_says_that_it_is_one():
    problem = problem_of(environ={"RELAY_LISTEN__MEMORY_BYTES_MAX": "32MiB"})
    assert problem.startswith(
        'default: listen.inflated_bytes_max = "64MiB": must be at most listen.memory_bytes_max (32'
    )


@pytest.mark.parametrize(
    ("name", "fits", "too_large"),
    [("event_bytes_max", "30464KiB", "30465KiB"), ("inflated_bytes_max", "30MiB", "31MiB")],
)
def test_what_finds_no_room_in_an_empty_queue_is_refused_before_it_is_answered_503_forever(
    config_file, name, fits, too_large
):
    text = '[listen]\n{} = "{}"\n[queue]\nbytes_max = "64MiB"\n'
    assert load(config_file(text.format(name, fits)), {})
    path = config_file(text.format(name, too_large))
    problem = problem_of(path)
    assert problem.startswith(f'{path}: listen.{name} = "{too_large}": must be at most {fits}: ')
    assert problem.endswith("; lower it, or raise queue.bytes_max (64MiB) to 65MiB")
    assert load(path, {"RELAY_QUEUE__BYTES_MAX": "65MiB"})


def test_bodies_left_alone_shrink_with_the_queue():
    assert load(None, {"RELAY_QUEUE__BYTES_MAX": "64MiB"}).listen.inflated_bytes_max == 30 * MIB
    assert load(None, {"RELAY_QUEUE__BYTES_MAX": "1GiB"}).listen.inflated_bytes_max == 64 * MIB


@pytest.mark.parametrize("bytes_max", [64 * MIB, 1 << 30, 1 << 40])
def test_what_the_queue_is_said_to_hold_finds_room_in_an_empty_one(tmp_path, bytes_max):
    store = Store(tmp_path, bytes_max=bytes_max)
    room = Room(capacity_bytes=store.capacity_bytes, disk_free_bytes_min=0, lane_bytes_share_max=1.0)
    room.used_bytes, room.space = store.usage().used_bytes, Space(1 << 50, 1 << 50)
    store.close()
    room.check(queue_holds(bytes_max))
    with pytest.raises(QueueFull):
        room.check(queue_holds(bytes_max) + 2 * MIB)


def test_dead_letters_left_alone_shrink_with_the_queue():
    assert load(None, {"RELAY_QUEUE__BYTES_MAX": "64MiB"}).queue.dead_letter_bytes_max == 8 * MIB
    assert load(None, {"RELAY_QUEUE__BYTES_MAX": "64GiB"}).queue.dead_letter_bytes_max == 128 * MIB


def test_a_bad_value_hides_no_conflict_but_those_it_has_part_in(config_file):
    path = config_file(
        '[listen]\nmemory_bytes_max = "lots"\ninflated_bytes_max = "900MiB"\n[upstream]\nconnect_seconds_max = 40\n'
    )
    memory, connect = problems_of(path)
    assert "listen.memory_bytes_max" in memory
    assert "upstream.connect_seconds_max" in connect


def test_all_problems_are_told_at_once_and_in_a_line_each(config_file):
    path = config_file(
        '[queue]\nbytes_max = "a\\nb"\nsizes = 1\n[log]\nlevel = "loud"\n[upstream]\nretry_seconds_min = 999'
    )
    problems = problems_of(path, {"RELAY_NO__SUCH": "", "RELAY_ADMIN__ADDRESS": "x"})
    assert len(problems) == 6
    assert not any("\n" in problem for problem in problems)


@pytest.mark.parametrize(
    "text",
    [
        'upstream.proxy = "ftp://me:hunter2@proxy"',
        'upstream.proxy = "me:hunter2@proxy:3128"',
        'upstream.proxy = "http://me:hun/ter2@proxy:x"',
        'upstream.url = "https://me:hunter2@host:0/v1"',
        'upstream.url = "https://host:0/v1?k=hunter2"',
        'upstream.api_key_file = "secret-hunter2"',
        'listen.api_keys_allowed_file = "client-hunter2"',
        'upstream.api_key = "hunter2"',
        'hunter = "hunter2"',
    ],
)
def test_no_secret_stands_in_a_problem(config_file, text):
    (problem,) = problems_of(config_file(text))
    assert "ter2" not in problem


def test_a_long_value_is_cut_in_its_problem():
    assert len(problem_of(environ={"RELAY_QUEUE__BYTES_MAX": "x" * 5000})) < 250


def test_a_file_that_is_not_there_is_one_clear_problem(tmp_path):
    path = tmp_path / "none.toml"
    assert problem_of(path) == (
        f"{path}: cannot be read: No such file or directory; name the file with --config, or leave it out"
    )


def test_a_folder_in_place_of_the_file_is_one_clear_problem(tmp_path):
    assert problem_of(tmp_path).startswith(f"{tmp_path}: cannot be read: Is a directory")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("[queue]\nbytes_max = 64MiB\n", "line 2, column 15: "),
        ("[queue\n", "line 1, column 7: "),
        ('a = "', "at its end: "),
        ("[queue]\n[queue]\n", "line 2, column 7: "),
    ],
)
def test_a_syntax_error_names_file_line_and_cure(config_file, text, place):
    path = config_file(text)
    problem = problem_of(path)
    assert problem.startswith(f"{path}: {place}")
    assert problem.endswith('texts, sizes ("1GiB") and durations ("30s") need quotes')


def test_a_file_that_is_not_utf8_is_one_clear_problem(tmp_path):
    path = tmp_path / "config.toml"
    path.write_bytes(b'[log]\nlevel = "\xff"\n')
    assert problem_of(path) == f"{path}: is not UTF-8 at byte 15; save it as UTF-8"


def test_problems_of_the_environment_are_told_beside_those_of_a_broken_file(config_file):
    assert len(problems_of(config_file("[queue"), {"RELAY_LOG__LEVEL": "loud"})) == 2
