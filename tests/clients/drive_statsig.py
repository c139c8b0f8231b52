"""Logs the odd events with the `statsig` package: drive_statsig.py RELAY_PORT SPECS_PORT."""

import sys

from odd_events import odd_events
from statsig import StatsigEvent, StatsigOptions, StatsigUser, statsig


def main(relay_port: str, specs_port: str) -> None:
    options = StatsigOptions(
        api_for_log_event=f"http://127.0.0.1:{relay_port}/v1",
        api_for_download_config_specs=f"http://127.0.0.1:{specs_port}/v2",
        api_for_get_id_lists=f"http://127.0.0.1:{specs_port}/v1",
        event_queue_size=100,
    )
    statsig.initialize("secret-driver", options)
    user = StatsigUser("user-1", email="a@example.com", custom={"plan": "pro"}, private_attributes={"payer": "private"})
    statsig.check_gate(user, "a_gate")
    for name, value, metadata in odd_events():
        statsig.log_event(StatsigEvent(user, name, value=value, metadata=metadata))
    statsig.flush()
    statsig.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
