"""Whether the page can be served at an address, asked before a model is loaded."""

from __future__ import annotations

import argparse
import errno
import socket

from recipes.cologen.errors import CologenError

MOST_PORT = 65535


class AddressError(CologenError, OSError):
    """The page cannot be served at this address."""


def port(text: str) -> int:
    """Read a port off the command line.

    Raises:
        ArgumentTypeError: Says what came.
    """
    if not (text.isdecimal() and 1 <= int(text) <= MOST_PORT):
        raise argparse.ArgumentTypeError(f"expected a port from 1 to {MOST_PORT}, got {text!r}")
    return int(text)


def check_address(host: str, port: int | None) -> None:
    """Refuse an address that nothing can be served at, by listening there for a moment.

    Args:
        host: Address to listen on.
        port: Port; None stands for whichever is free.

    Raises:
        AddressError: The port is taken or not this user's to open, or the host is not this machine's.
    """
    try:
        kind, _, _, _, place = socket.getaddrinfo(host.strip("[]"), port or 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(kind, socket.SOCK_STREAM) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
            trial.bind(place)
    except OSError as error:
        raise AddressError(_words(error, host, port)) from error


def _words(error: OSError, host: str, port: int | None) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} is taken on {host}; give another with --port, or leave --port out."
    if isinstance(error, PermissionError):
        return f"port {port} may not be opened by this user; give --port a number from 1024 up."
    return f"--host {host} is no address of this machine ({error.strerror}); leave --host out for 127.0.0.1."
