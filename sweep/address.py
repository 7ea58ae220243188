"""The address of a Ray cluster's head: how it is written, and whether anything listens there."""

import socket

from .errors import ClusterUnreachableError

CONNECT_SECONDS = 5.0
MOST_PORT = 65535


def host_and_port(address: str) -> tuple[str, int] | None:
    """The parts of HOST:PORT; None for whatever is written otherwise."""
    host, _, port = address.rpartition(":")
    is_host = host and not set(host) & set("/@ ")
    is_port = port.isascii() and port.isdecimal() and int(port) <= MOST_PORT
    return (host.strip("[]"), int(port)) if is_host and is_port else None


def check_reachable(address: str) -> None:
    """See whether anything listens at HOST:PORT; Ray itself would try for minutes.

    Raises:
        ClusterUnreachableError: Nothing does.
    """
    place = host_and_port(address)
    assert place is not None, f"{address} is no HOST:PORT"
    try:
        socket.create_connection(place, timeout=CONNECT_SECONDS).close()
    except (OSError, UnicodeError) as error:
        raise ClusterUnreachableError(f"no Ray cluster answers at {address}: {error}") from error
