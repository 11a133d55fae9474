"""Ports on the loopback address that stay one's own while nobody listens on them."""

import socket
import sys

from deploy.kafka.errors import LocalKafkaError
from deploy.kafka.properties import HOST


def hold(port: int = 0) -> int:
    """Keep this port (0: a free one) from everybody's connections as long as this process lives, and return it.

    A broker that is down for a while, or a worker that needs seconds to start, would else find its port taken: by an
    outgoing connection of any process, even by a client's attempt to reach that very broker. Raises LocalKafkaError
    when something listens on the port.
    """
    with socket.socket() as held:
        # Whoever sets this option as well, as servers in Java and asyncio do, may listen beside a socket that doesn't.
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            held.bind((HOST, port))
        except OSError as error:
            raise LocalKafkaError(
                f"something else listens on {HOST} port {port} ({error}); end it, or choose another port "
                "(`python -m deploy.kafka --port 0` takes a free one)"
            ) from error
        port = held.getsockname()[1]
        if sys.platform == "linux":  # elsewhere nobody could listen beside it
            held.detach()
    return port


def free_ports(count: int) -> list[int]:
    """`count` different free ports, held as long as this process lives."""
    return [hold() for _ in range(count)]


def free_port() -> int:
    """One such port."""
    return hold()
