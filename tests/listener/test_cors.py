"""Web pages: who may post, and what they may read of the answer."""

from __future__ import annotations

import pytest
from listener.house import BODY, House, head, open_house

PAGE = "http://localhost:3000"
PREFLIGHT = {
    "Host": "relay",
    "Origin": PAGE,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "content-type,statsig-api-key,x-new-header",
}


async def test_a_page_that_is_not_allowed_is_refused_and_can_read_why(house: House):
    answer = await house.post(headers={"Origin": PAGE, "Content-Type": "text/plain"})
    assert answer.status == 403
    code, message = answer.refusal()
    assert code == "origin_forbidden"
    assert "listen.cors_origins" in message
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert answer.headers["vary"] == "Origin"
    assert house.refused() == {"unauthorized": 1}
    assert house.untouched()


async def test_a_preflight_of_a_page_that_is_not_allowed_allows_nothing(house: House):
    answer = await house.exchange(head("OPTIONS", "/v1/log_event", PREFLIGHT))
    assert answer.status == 403
    assert not [name for name in answer.headers if name.startswith("access-control-allow-") and "origin" not in name]
    assert house.refused() == {}, "the page has sent no event yet"


async def test_an_allowed_page_gets_exactly_these_headers(tmp_path):
    async with open_house(tmp_path, cors_origins=["http://LOCALHOST:3000/"]) as house:
        answer = await house.exchange(head("OPTIONS", "/v1/log_event", PREFLIGHT))
        assert answer.status == 204
        cors = {name: value for name, value in answer.headers.items() if name not in {"date", "server", "x-request-id"}}
        assert cors == {
            "allow": "POST, OPTIONS",
            "vary": "Origin",
            "access-control-allow-origin": PAGE,
            "access-control-allow-methods": "POST, OPTIONS",
            "access-control-allow-headers": "content-type,statsig-api-key,x-new-header",
            "access-control-expose-headers": "Retry-After, X-Request-Id",
            "access-control-max-age": "86400",
        }
        posted = await house.post(headers={"Origin": PAGE})
        assert posted.status == 202
        assert posted.headers["access-control-allow-origin"] == PAGE
        assert (await house.post(headers={"Origin": "http://localhost:3001"})).status == 403
        assert (await house.post(headers={"Origin": "null"})).status == 403


async def test_a_page_on_the_internet_is_told_that_it_may_reach_a_private_address(tmp_path):
    private = {**PREFLIGHT, "Access-Control-Request-Private-Network": "true"}
    async with open_house(tmp_path, cors_origins=[PAGE]) as house:
        answer = await house.exchange(head("OPTIONS", "/v1/log_event", private))
        assert answer.headers["access-control-allow-private-network"] == "true"
        other = await house.exchange(head("OPTIONS", "/v1/log_event", {**private, "Origin": "http://evil"}))
        assert "access-control-allow-private-network" not in other.headers


@pytest.mark.parametrize("origin", [PAGE, "null", "app://x", "chrome-extension://abc"])
async def test_a_star_lets_every_page_in_and_names_it_back(tmp_path, origin):
    async with open_house(tmp_path, cors_origins=["*"]) as house:
        answer = await house.post(headers={"Origin": origin})
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (202, origin)


async def test_refusals_carry_the_cors_headers_too(tmp_path):
    async with open_house(tmp_path, cors_origins=["*"], allowed_keys=lambda: {"k"}) as house:
        for body, path in ((b"[]", "/v1/rgstr?k=k"), (BODY, "/v1/rgstr"), (BODY, "/nowhere")):
            answer = await house.post(body, path=path, key=None, headers={"Origin": PAGE})
            assert answer.status in {400, 401, 404}
            assert answer.headers["access-control-allow-origin"] == PAGE


@pytest.mark.parametrize("origin", ["http://\xff", "http://a b", "x" * 2000, "", "http://é"])
@pytest.mark.parametrize("allowed", [[], ["*"]])
async def test_an_origin_that_cannot_stand_in_a_header_is_not_echoed(tmp_path, origin, allowed):
    async with open_house(tmp_path, cors_origins=allowed) as house:
        answer = await house.post(headers={"Origin": origin})
        assert answer.status == (202 if allowed else 403)
        assert "access-control-allow-origin" not in answer.headers
        wanted = await house.exchange(
            head("OPTIONS", "/v1/rgstr", {**PREFLIGHT, "Access-Control-Request-Headers": origin})
        )
        assert wanted.headers.get("access-control-allow-headers", "") != origin or not origin
