"""Where the door listens: several addresses, Unix sockets, what is absent, what is taken."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import stat
from typing import TYPE_CHECKING

import pytest
from listener.house import BODY, Client, open_house, post

from relay.config.values import Address
from relay.errors import RelayError
from relay.listener.process import DESCRIPTORS_KEPT, room_for
from relay.listener.sockets import Sockets

if TYPE_CHECKING:
    from pathlib import Path

LOCAL = Address("127.0.0.1", 0)


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


async def post_unix(path: Path) -> int:
    client = Client(*await asyncio.open_unix_connection(path))
    await client.send(post())
    status = (await client.read()).status
    client.hang_up()
    return status


async def test_it_listens_on_every_address_it_is_given(tmp_path):
    path = tmp_path / "relay.sock"
    async with open_house(tmp_path / "q", addresses=[LOCAL, Address(path=str(path)), LOCAL]) as house:
        assert house.names[1] == f"unix:{path}"
        for name in (house.names[0], house.names[2]):
            client = Client(*await asyncio.open_connection("127.0.0.1", int(name.split(":")[1])))
            await client.send(post())
            assert (await client.read()).status == 202
            client.hang_up()
        assert await post_unix(path) == 202
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert not path.exists(), "the file goes with the relay"


async def test_the_file_of_a_relay_that_was_killed_is_replaced(tmp_path):
    path = tmp_path / "relay.sock"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
        killed.listen()
    assert path.exists()
    async with open_house(tmp_path / "q", addresses=[Address(path=str(path))]):
        assert await post_unix(path) == 202


@pytest.mark.parametrize("full", [False, True])
def test_the_file_of_a_relay_that_lives_is_left_alone(tmp_path, full):
    path = tmp_path / "relay.sock"
    with socket.socket(socket.AF_UNIX) as alive, socket.socket(socket.AF_UNIX) as waiting:
        alive.bind(str(path))
        alive.listen(0)
        if full:
            waiting.connect(str(path))
        with pytest.raises(RelayError, match=r"unix:.*relay\.sock cannot be bound.*is another relay running\?"):
            Sockets().bind([Address(path=str(path))])
    assert path.exists()


def test_a_file_that_is_no_socket_is_left_alone(tmp_path):
    path = tmp_path / "relay.sock"
    path.write_text("precious")
    with pytest.raises(RelayError, match="cannot be bound"):
        Sockets().bind([Address(path=str(path))])
    assert path.read_text() == "precious"


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(RelayError, match=r"nowhere/relay\.sock cannot be bound: No such file"):
        Sockets().bind([Address(path=str(tmp_path / "nowhere" / "relay.sock"))])


def test_the_file_of_a_successor_is_not_taken_away(tmp_path):
    path = tmp_path / "relay.sock"
    first, second = Sockets(), Sockets()
    first.bind([Address(path=str(path))])
    path.unlink()
    (tmp_path / "hold-the-inode").write_text("")
    second.bind([Address(path=str(path))])
    first.close()
    assert path.exists()
    second.close()
    assert not path.exists()
    second.close()


def test_an_address_in_use_is_named_and_the_others_are_let_go(tmp_path):
    path = tmp_path / "relay.sock"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            RelayError, match=rf"listen\.address 127\.0\.0\.1:{port} .*in use; is another relay running"
        ):
            Sockets().bind([Address(path=str(path)), Address("127.0.0.1", port)])
    assert not path.exists()


def test_an_ipv6_address_is_skipped_only_where_the_machine_has_no_ipv6():
    wrong = Address("2001:db8::1", 0, ipv6=True)  # for documentation: nobody has it
    sockets = Sockets()
    if has_ipv6():
        with pytest.raises(RelayError, match=r"\[2001:db8::1\]:0 cannot be bound: .*no interface"):
            sockets.bind([LOCAL, wrong])
        sockets.bind([LOCAL, Address("::1", 0, ipv6=True)])
        assert len(sockets.bound) == 2
    else:
        sockets.bind([LOCAL, wrong])
        assert len(sockets.bound) == 1
    sockets.close()


def test_ipv6_alone_on_a_machine_without_it_is_an_error():
    if has_ipv6():
        pytest.skip("this machine has IPv6")
    with pytest.raises(RelayError, match=r"none of listen\.address"):
        Sockets().bind([Address("::1", 0, ipv6=True)])


def test_ipv4_and_ipv6_share_a_port():
    if not has_ipv6():
        pytest.skip("this machine has no IPv6")
    sockets = Sockets()
    sockets.bind([LOCAL])
    port = sockets.bound[0].getsockname()[1]
    sockets.bind([Address("::1", port, ipv6=True)])
    assert [bound.getsockname()[:2] for bound in sockets.bound] == [("127.0.0.1", port), ("::1", port)]
    sockets.close()


def test_a_port_may_be_bound_again_at_once():
    first = Sockets()
    first.bind([LOCAL])
    port = first.bound[0].getsockname()[1]
    first.bound[0].listen()
    with socket.create_connection(("127.0.0.1", port)) as client:
        served, _ = first.bound[0].accept()
        served.close()  # leaves TIME_WAIT on our side
        assert client.recv(1) == b""
    first.close()
    second = Sockets()
    second.bind([Address("127.0.0.1", port)])
    second.close()


async def test_sockets_that_a_supervisor_holds_are_used_instead(tmp_path):
    async with open_house(tmp_path) as house:
        handed = socket.create_server(("127.0.0.1", 0))
        handed.setblocking(False)
        other = type(house.listener)(house.door)
        names = await other.open([Address("127.0.0.1", 1)], [handed])
        client = Client(*await asyncio.open_connection(*handed.getsockname()))
        assert names == [f"127.0.0.1:{handed.getsockname()[1]}"]
        await client.send(post(BODY))
        assert (await client.read()).status == 202
        client.hang_up()
        await other.close(1)


def test_descriptors_are_asked_for_and_fewer_connections_are_kept_where_they_cannot_be_had():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        assert room_for(300) == 300
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 300 + DESCRIPTORS_KEPT
        assert room_for(10) == 10
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 300 + DESCRIPTORS_KEPT, "never lowered"
        assert room_for(hard) == hard - DESCRIPTORS_KEPT
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may bind any port")
def test_a_right_that_is_missing_is_told_as_such():
    with pytest.raises(RelayError, match="a right that this process does not have"):
        Sockets().bind([Address("127.0.0.1", 1)])
