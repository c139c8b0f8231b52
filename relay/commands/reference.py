"""The log_event call of the API's reference page, every documented field in it, as a raw HTTP caller would send it."""

from __future__ import annotations

import json
from typing import Final

API_KEY: Final = "secret-demo"
PRIVATE_VALUE: Final = "jean.dupont@example.com"
"""Stands in `privateAttributes`, of the shared user and of the event's own; must never reach a disk."""


def headers(now_ms: int) -> dict[str, str]:
    """Give the documented headers of a call made now, in Unix milliseconds."""
    return {"statsig-api-key": API_KEY, "STATSIG-CLIENT-TIME": str(now_ms), "Content-Type": "application/json"}


def body(now_ms: int, value: str) -> bytes:
    """Give the documented body with one event of a chosen `value`, so that it can be told from others."""
    sdk = {"sdkType": "http-api", "sdkVersion": "1.0.0"}
    event = {
        "eventName": "add_to_cart",
        "value": value,
        "time": now_ms,
        "user": _user() | {"userID": "a-user"},
        "metadata": {"price": "59.99", "item_name": "trainers"},
        "secondaryExposures": [{"gate": "free_shipping", "gateValue": "true", "ruleID": "rule-1"}],
        "statsigMetadata": sdk | {"exposureLoggingDisabled": False},
    }
    return json.dumps({"events": [event], "user": _user(), "statsigMetadata": sdk}).encode()


def _user() -> dict[str, object]:
    return {
        "userID": "shared-user",
        "email": "someone@example.com",
        "ip": "192.0.2.7",
        "userAgent": "Mozilla/5.0",
        "country": "NZ",
        "locale": "en_NZ",
        "appVersion": "4.2.1",
        "custom": {"plan": "pro", "cohort": "june"},
        "privateAttributes": {"payer": PRIVATE_VALUE},
        "customIDs": {"stableID": "4a1f"},
        "statsigEnvironment": {"tier": "production"},
    }
