"""Whether the hub can be reached, asked shortly: its own client tries for half a minute, and says so line by line."""

from __future__ import annotations

import socket
import time
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

_SECONDS = 5.0
"""How long to try in all, and each of the host's addresses: those of IPv6 may lead nowhere where IPv4 does."""
_EACH = 2.0


def unreachable() -> str:
    """Why the hub (`HF_ENDPOINT`) cannot be connected to.

    "" where it can, where a proxy is to be asked for it, where nothing is to be asked (`HF_HUB_OFFLINE`), and where
    the address is none: the hub's client says that.
    """
    from huggingface_hub import constants

    hub = urlsplit(constants.ENDPOINT)
    try:
        host, port = hub.hostname or "", hub.port or (80 if hub.scheme == "http" else 443)
    except ValueError:
        return ""
    proxied = bool({hub.scheme, "all"} & getproxies().keys()) and not proxy_bypass(host)
    if constants.HF_HUB_OFFLINE or proxied or not host:
        return ""
    try:
        _connect(host, port)
    except OSError as error:
        return f"{constants.ENDPOINT} cannot be reached ({error})"
    return ""


def _connect(host: str, port: int) -> None:
    """Raise the last `OSError` of the host's addresses, where none answers in time."""
    end, failed = time.monotonic() + _SECONDS, OSError("no address")
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        left = min(_EACH, end - time.monotonic())
        if left <= 0:
            break
        with socket.socket(family, kind, protocol) as tried:
            tried.settimeout(left)
            try:
                return tried.connect(address)
            except OSError as error:
                failed = error
    raise failed
