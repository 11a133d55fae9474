"""Free ports on the loopback address."""

import random
import socket

from deploy.kafka.errors import LocalKafkaError
from deploy.kafka.properties import HOST

# Below the ports that systems give to outgoing connections (Linux from 32768, others from 49152): a broker that is
# stopped for a while, or a worker that needs seconds to start, must not find its port taken by somebody's connection.
FIRST, LAST = 12_000, 32_000


def is_free(port: int) -> bool:
    """Whether a server may listen on this port, as Java would (connections in TIME_WAIT do not matter)."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def free_ports(count: int, *, but: frozenset[int] = frozenset()) -> list[int]:
    """`count` different free ports, none of them in `but`, drawn at random so that two clusters rarely meet."""
    chosen: list[int] = []
    for port in random.SystemRandom().sample(range(FIRST, LAST), 2_000):
        if len(chosen) == count:
            break
        if port not in but and is_free(port):
            chosen.append(port)
    if len(chosen) < count:
        raise LocalKafkaError(f"no {count} free ports between {FIRST} and {LAST} on {HOST}; end what listens there")
    return chosen


def free_port() -> int:
    """One such port."""
    return free_ports(1)[0]
