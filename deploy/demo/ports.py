"""A port for a server that the demo starts."""

import socket


def free_port() -> int:
    """A port of the loopback interface that nothing listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
