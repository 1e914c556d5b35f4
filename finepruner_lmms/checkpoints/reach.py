"""Whether the hub can be reached, asked shortly: its own client tries for half a minute, and says so line by line."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

_SECONDS = 5.0
"""A connection that takes longer than that is none."""


def unreachable() -> str:
    """Why the hub (`HF_ENDPOINT`) cannot be connected to.

    "" where it can, where a proxy is to be asked for it, and where nothing is to be asked (`HF_HUB_OFFLINE`).
    """
    from huggingface_hub import constants

    hub = urlsplit(constants.ENDPOINT)
    host, port = hub.hostname or "", hub.port or (80 if hub.scheme == "http" else 443)
    proxied = hub.scheme in getproxies() and not proxy_bypass(host)
    if constants.HF_HUB_OFFLINE or proxied or not host:
        return ""
    try:
        socket.create_connection((host, port), _SECONDS).close()
    except OSError as error:
        return f"{constants.ENDPOINT} cannot be reached ({error})"
    return ""
