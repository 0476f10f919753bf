"""Prefect's server for this machine alone: what a foreign page sends by way of a browser is refused.

A server on loopback is reached by any page that is open on the machine: under its own name, if that resolves
to 127.0.0.1 (DNS rebinding), or across origins. Prefect checks neither, and hands out its CSRF token to both.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

HOST = "127.0.0.1"
NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


class LoopbackOnly:
    """An ASGI application that answers requests to and from names of this machine.

    Args:
        app: The application that gets them.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, or answer 403; a WebSocket is closed."""
        if scope["type"] in ("http", "websocket") and (refused := _refused(dict(scope["headers"]))):
            await _refuse(scope["type"], refused, send)
            return
        await self.app(scope, receive, send)


def _refused(headers: dict[bytes, bytes]) -> str:
    """Say which header names another machine; empty if none does."""
    host, origin = (headers.get(name, b"").decode("latin-1") for name in (b"host", b"origin"))
    if host and not is_loopback(f"//{host}"):
        return f"Host {host!r}"
    if origin and not is_loopback(origin):
        return f"Origin {origin!r}"
    return ""


def is_loopback(address: str) -> bool:
    """Whether the host of a URL is this machine; an Origin ``null`` is nobody's."""
    try:
        return (urlsplit(address).hostname or "") in NAMES
    except ValueError:
        return False


async def _refuse(kind: str, what: str, send: Any) -> None:
    if kind == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    text = f"{what} is not this machine: this server answers to {', '.join(sorted(NAMES))} alone\n"
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", b"%d" % len(text.encode())),
    ]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})


def prefect_app() -> LoopbackOnly:
    """Prefect's server behind the check; what ``uvicorn --factory`` calls."""
    from prefect.server.api.server import create_app

    return LoopbackOnly(create_app(final=True))
