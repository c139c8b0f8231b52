"""Evaluates flags for odd contexts by OpenFeature, provided by Statsig: drive_openfeature.py RELAY_PORT SPECS_PORT.

The provider logs nothing but an exposure for each evaluation. The last line of stdout is JSON: "flag for user" of each.
"""

import json
import sys

from openfeature import api
from openfeature.evaluation_context import EvaluationContext
from statsig_openfeature_provider_python import StatsigOptions, StatsigProvider

ODD_USERS = ["ünïcødé 🎉", "with space", 'quote " and \\', "]},{[", "line\nbreak", "x" * 2_000, "NaN", "0"]
ODD_ATTRIBUTES: list[dict] = [
    {},
    {"🔑": "🎉", "": "empty key"},
    {"huge": 2**63 - 1, "float": 1e21, "tiny": 5e-324, "yes": True},
    {"list": ["a", "b"], "long": "y" * 5_000},
    {"privateAttributes": "an attribute of that name"},
]
PLAIN = 100


def main(relay_port: str, specs_port: str) -> None:
    options = StatsigOptions(
        specs_url=f"http://127.0.0.1:{specs_port}/v2/download_config_specs",
        log_event_url=f"http://127.0.0.1:{relay_port}/v1/log_event",
        event_logging_max_queue_size=100,
        fallback_to_statsig_api=False,
        disable_disk_access=True,
    )
    provider = StatsigProvider(sdk_key="secret-driver", client_options=options)
    api.set_provider(provider)
    client = api.get_client()
    evaluated = []
    for number, user in enumerate([*ODD_USERS, *(f"user-{n}" for n in range(PLAIN))]):
        context = EvaluationContext(user, ODD_ATTRIBUTES[number % len(ODD_ATTRIBUTES)])
        client.get_boolean_value("a_gate", default_value=True, evaluation_context=context)
        client.get_string_value("a_config", default_value="none", evaluation_context=context)
        client.get_boolean_value("no such gate", default_value=True, evaluation_context=context)
        evaluated += [f"{flag} for {user}" for flag in ("a_gate", "a_config", "no such gate")]
    provider._client.shutdown().wait()  # the provider itself has no way to flush
    sys.stdout.write(json.dumps(evaluated))


if __name__ == "__main__":
    main(*sys.argv[1:])
