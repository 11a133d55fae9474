"""The list of brokers in one form for both Kafka clients, which take different ones: host:port, with commas between."""

import re
from ipaddress import AddressValueError, IPv6Address
from typing import Final

_PORT: Final = 9092
_SERVER: Final = re.compile(
    r"(?:(?P<prefix>[A-Za-z0-9_.+-]+)://)?(?:\[(?P<ipv6>[^]]*)\]|(?P<name>[A-Za-z0-9._-]+))(?::(?P<port>[0-9]{1,5}))?"
)


def plain_servers(text: str, security_protocol: str) -> str:
    """`text` without spaces, empty entries, and the listeners' prefixes that brokers have in their own configuration.

    Raises ValueError for what names no broker, or a prefix that says something else than `security_protocol`.
    """
    servers = [_plain(entry, security_protocol) for entry in map(str.strip, text.split(",")) if entry]
    if not servers:
        raise ValueError("names no broker; write host:port, several by commas")
    return ",".join(servers)


def _plain(entry: str, security_protocol: str) -> str:
    found = _SERVER.fullmatch(entry)
    if found is None and "@" in entry:  # not repeated: what stands before it is a login
        raise ValueError("a broker has a login before its name; set sasl_username and sasl_password")
    if found is None:
        raise ValueError(f"{entry!r} is no broker; write host:port, several by commas, an IPv6 address as [::1]:9092")
    prefix = (found["prefix"] or security_protocol).upper()
    if prefix != security_protocol:
        raise ValueError(
            f"{entry!r} has the prefix of a listener, {prefix}://, and security_protocol is {security_protocol}: "
            f"leave the prefix out, and set security_protocol to what that listener speaks"
        )
    port = int(found["port"] or _PORT)
    if not 0 < port < 65_536:
        raise ValueError(f"{entry!r} has a port that is not between 1 and 65535")
    if found["name"] is not None:
        return f"{found['name']}:{port}"
    try:
        return f"[{IPv6Address(found['ipv6'])}]:{port}"
    except AddressValueError as error:
        raise ValueError(f"{entry!r} has no IPv6 address in its brackets: {error}") from error
