"""The log_event contract: bytes to typed requests; pure."""
