"""What a line looks like, who may write one, and what stays out."""

import asyncio
import io
import json
import logging
import re
import subprocess
import sys

import pytest
import structlog
from aiohttp import ClientSession, web
from aiohttp.http_exceptions import BadHttpMessage

from relay import __version__
from relay.logs import OnceAMinute, close_logs, configure_logs, set_level


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def logged():
    """Set logs up into a stream; calling it ends them and gives the lines."""
    stream = io.StringIO()
    configure_logs("info", "json", stream=stream)

    def end():
        close_logs()
        return [json.loads(line) for line in stream.getvalue().splitlines()]

    yield end
    close_logs()


def test_a_line_is_json_with_time_level_event_service_and_fields(logged):
    structlog.get_logger().info("batch_delivered", events=12, duration_s=0.21, lane="0a1b2c3d")
    (line,) = logged()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", line.pop("timestamp"))
    assert line == {
        "level": "info",
        "event": "batch_delivered",
        "service.name": "event-relay",
        "service.version": __version__,
        "events": 12,
        "duration_s": 0.21,
        "lane": "0a1b2c3d",
    }


def test_a_line_begins_with_time_level_and_event(logged):
    structlog.get_logger().info("opened", a=1)
    assert list(logged()[0])[:3] == ["timestamp", "level", "event"]


def test_lines_below_the_level_are_not_written(logged):
    log = structlog.get_logger()
    log.debug("unheard")
    log.info("heard")
    assert [line["event"] for line in logged()] == ["heard"]


def test_a_changed_level_reaches_loggers_that_exist(logged):
    bound = structlog.get_logger().bind(lane="a")
    bound.info("one")
    set_level("debug")
    bound.debug("two")
    set_level("error")
    bound.warning("three")
    assert [line["event"] for line in logged()] == ["one", "two"]


def test_an_exception_is_told_without_the_values_of_local_variables(logged):
    def fail():
        user = {"email": "jane@" + "example.com"}
        raise ValueError("it broke: ?k=client-" + "x" * 3, len(user))

    try:
        fail()
    except ValueError:
        structlog.get_logger().exception("unexpected")
    (line,) = logged()
    assert line["level"] == "error"
    assert "ValueError" in line["exception"]
    assert "in fail" in line["exception"]
    assert "example.com'" not in line["exception"]
    assert "client-xxx" not in line["exception"]


def test_a_secret_that_a_call_hands_over_is_hidden(logged):
    structlog.get_logger().bind(api_key="hunter2").warning("parked", key="hunter2", user={"userID": "hunter2"})
    structlog.contextvars.bind_contextvars(authorization="hunter2")
    structlog.get_logger().warning("parked")
    structlog.contextvars.clear_contextvars()
    assert "hunter2" not in json.dumps(logged())


def test_ids_of_the_context_stand_in_the_line(logged):
    with structlog.contextvars.bound_contextvars(request_id="r-1"):
        structlog.get_logger().info("refused")
    assert logged()[0]["request_id"] == "r-1"


def test_a_warning_of_a_library_comes_the_same_way_and_its_information_does_not(logged):
    logging.getLogger("aiohttp.client").info("unheard")
    logging.getLogger("aiohttp.client").warning("%s is odd", "it")
    logging.getLogger("asyncio").error("broken")
    first, second = logged()
    assert (first["level"], first["event"], first["logger"]) == ("warning", "library_message", "aiohttp.client")
    assert first["message"] == "it is odd"
    assert (second["level"], second["message"]) == ("error", "broken")


def test_a_library_message_whose_arguments_do_not_fit_is_logged_as_it_stands():
    code = (
        "import logging; from relay.logs import configure_logs; configure_logs('info', 'json')\n"
        "logging.getLogger('odd').warning('%d apples', 'no')"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True)
    (line,) = process.stderr.splitlines()
    assert json.loads(line)["message"] == "%d apples"


def test_a_flood_of_a_library_is_two_lines_that_add_up(logged):
    for number in range(500):
        logging.getLogger("noisy").error("connection %d broke", number)
    first, summary = logged()
    assert "times" not in first
    assert summary["times"] == 499


def test_a_client_that_speaks_no_http_is_told_by_type_and_never_quoted(logged):
    for number in range(50):
        try:
            raise BadHttpMessage(f"Invalid header: statsig_key hunter2 {number}")
        except BadHttpMessage:
            logging.getLogger("aiohttp.server").exception("Error handling request from %s", "10.1.2.3")
    first, summary = logged()
    assert (first["event"], first["level"], first["error"]) == ("client_speaks_no_http", "warning", "BadHttpMessage")
    assert summary["times"] == 49
    assert "hunter2" not in json.dumps([first, summary])
    assert "exception" not in first


async def test_the_real_aiohttp_server_is_kept_from_flooding_and_quoting(logged):
    async def answer(_request):
        return web.Response()

    server = web.Server(answer)
    runner = web.ServerRunner(server, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    for _ in range(30):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /v1 HTTP/1.1\r\nHost: x\r\nbad header\x00: secret-hunter2\r\n\r\n")
        assert b" 400 " in await reader.readline()
        writer.close()
        await writer.wait_closed()
    async with ClientSession() as session, session.get(f"http://127.0.0.1:{port}/") as response:
        assert response.status == 200
    await runner.cleanup()
    lines = await asyncio.to_thread(logged)
    assert [line["event"] for line in lines] == ["client_speaks_no_http"] * 2
    assert lines[1]["times"] == 29
    assert "hunter2" not in json.dumps(lines)


async def test_logging_on_an_event_loop_blocks_nothing(logged):
    repeats = OnceAMinute()
    for number in range(200):
        structlog.get_logger().info("batch_delivered", events=number)
        repeats.say(structlog.get_logger().warning, "upstream_failed")
        logging.getLogger("library").warning("odd")
    assert len(await asyncio.to_thread(logged)) == 200 + 2 + 2


def test_dropped_lines_are_counted_in_the_log(logged):
    log = structlog.get_logger()
    for number in range(20_000):
        log.info("flood", number=number)
    lines = logged()
    written = sum(line["event"] == "flood" for line in lines)
    dropped = sum(line["lines"] for line in lines if line["event"] == "log_lines_dropped")
    assert written + dropped == 20_000


@pytest.mark.parametrize(
    ("form", "stream", "json_expected"),
    [
        ("auto", io.StringIO, True),
        ("auto", Terminal, False),
        ("console", io.StringIO, False),
        ("json", Terminal, True),
    ],
)
def test_the_form_suits_the_stream_unless_it_is_chosen(form, stream, json_expected):
    target = stream()
    configure_logs("info", form, stream=target)
    structlog.get_logger().info("opened", address="[::1]:1")
    close_logs()
    text = target.getvalue()
    assert "opened" in text
    assert text.startswith("{") == json_expected


def test_a_terminal_shows_exceptions_plainly_and_hides_secrets_too(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    terminal = Terminal()
    configure_logs("info", "auto", stream=terminal)
    try:
        raise ValueError("hun" + "ter2 is in ?k=" + "hunter2")
    except ValueError:
        structlog.get_logger().exception("unexpected", api_key="hunter3")
    close_logs()
    text = terminal.getvalue()
    assert "ValueError" in text
    assert "k=[hidden]" in text
    assert "hunter3" not in text
    assert "\x1b" not in text


def test_a_second_setup_replaces_the_first():
    first, second = io.StringIO(), io.StringIO()
    configure_logs("info", "json", stream=first)
    structlog.get_logger().info("one")
    configure_logs("info", "json", stream=second)
    structlog.get_logger().info("two")
    logging.getLogger("library").warning("odd")
    close_logs()
    assert [json.loads(line)["event"] for line in first.getvalue().splitlines()] == ["one"]
    assert [json.loads(line)["event"] for line in second.getvalue().splitlines()] == ["two", "library_message"]


def test_what_waits_is_written_when_the_process_ends():
    code = (
        "import structlog; from relay.logs import OnceAMinute, configure_logs; configure_logs('info', 'auto')\n"
        "log = structlog.get_logger(); often = OnceAMinute()\n"
        "for number in range(500): log.info('line', number=number); often.say(log.warning, 'often')\n"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True)
    lines = [json.loads(line) for line in process.stderr.splitlines()]
    assert [line["number"] for line in lines if line["event"] == "line"] == list(range(500))
    assert [line.get("times") for line in lines if line["event"] == "often"] == [None, 499]
    assert process.stdout == ""
