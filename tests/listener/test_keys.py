"""Which keys are let in, and where they may stand."""

from __future__ import annotations

import pytest
from listener.house import House, open_house


def lanes(house: House) -> list[str]:
    return [lane.key for lane in house.spool.lanes()]


@pytest.mark.parametrize(
    ("header", "query", "kept"),
    [
        (None, "", ""),
        ("secret-h", "", "secret-h"),
        (None, "?k=client-q", "client-q"),
        ("secret-h", "?k=client-q", "secret-h"),
        ("", "?k=client-q", "client-q"),
        ("  secret-h ", "", "secret-h"),
        (None, "?st=js&k=a%26b%2Bc%3Dd%2541&k=second", "a&b+c=d%41"),
    ],
)
async def test_the_key_is_taken_from_header_or_query_and_the_header_wins(house: House, header, query, kept):
    assert (await house.post(key=header, path="/v1/rgstr" + query)).status == 202
    assert lanes(house) == [kept]


async def test_no_key_at_all_is_401_where_none_is_configured_to_stand_in(tmp_path, short_way):
    async with open_house(tmp_path, short_way=short_way, keyless_taken=False) as house:
        answer = await house.post(key=None)
        assert answer.status == 401
        code, message = answer.refusal()
        assert code == "unauthorized"
        assert "statsig-api-key" in message
        assert house.refused() == {"unauthorized": 1}
        assert (await house.post(key="any")).status == 202


@pytest.mark.parametrize("key", ["x" * 513, "caf\xe9", "a\tb"])
async def test_a_key_that_could_not_travel_is_401(house: House, key):
    answer = await house.post(key=key)
    assert answer.status == 401
    assert house.untouched()


async def test_only_keys_on_the_operators_list_are_let_in_as_the_list_stands_now(tmp_path, short_way):
    allowed = {"secret-a"}
    async with open_house(tmp_path, short_way=short_way, allowed_keys=lambda: allowed) as house:
        assert (await house.post(key="secret-a")).status == 202
        for key, query in (("secret-b", ""), (None, ""), (None, "?k=secret-b"), ("secret-b", "?k=secret-a")):
            answer = await house.post(key=key, path="/v1/rgstr" + query)
            assert answer.status == 401
            assert b"secret" not in answer.body
        assert house.refused() == {"unauthorized": 4}
        allowed.add("secret-b")
        allowed.remove("secret-a")
        assert (await house.post(key="secret-b")).status == 202
        assert (await house.post(key="secret-a")).status == 401


async def test_a_list_that_is_not_read_yet_is_503_for_401_would_make_sdks_drop(tmp_path, short_way):
    async with open_house(tmp_path, short_way=short_way, allowed_keys=frozenset) as house:
        answer = await house.post()
        assert answer.status == 503
        assert int(answer.headers["retry-after"]) > 0
        assert answer.refusal()[0] == "keys_unknown"
        assert (await house.post(key=None)).status == 401
