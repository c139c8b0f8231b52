"""Logs the odd events with the `statsig-python-core` package: drive_statsig_core.py RELAY_PORT SPECS_PORT."""

import sys

from odd_events import odd_events
from statsig_python_core import Statsig, StatsigOptions, StatsigUser


def main(relay_port: str, specs_port: str) -> None:
    options = StatsigOptions(
        specs_url=f"http://127.0.0.1:{specs_port}/core/v2/download_config_specs",
        log_event_url=f"http://127.0.0.1:{relay_port}/v1/log_event",
        event_logging_max_queue_size=100,
        fallback_to_statsig_api=False,
        disable_disk_access=True,
    )
    client = Statsig("secret-driver", options)
    client.initialize().wait()
    user = StatsigUser("user-1", email="a@example.com", custom={"plan": "pro"}, private_attributes={"payer": "private"})
    client.check_gate(user, "a_gate")
    for name, value, metadata in odd_events():
        client.log_event(user, name, value, metadata)
    client.flush_events().wait()
    client.shutdown().wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
