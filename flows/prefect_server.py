"""Prefect's server as `gristmill up` starts it: what pages ask for is done though its SQLite file is busy.

Prefect answers a request that finds its file locked with 503 after it has rolled everything back, and its own
clients ask again. Its pages do not: a form then said "Something went wrong trying to create a flow run". A
longer busy timeout is no help: SQLite refuses at once a transaction that has read when another one wrote, and
creating a run reads its deployment first. So creating takes the lock before it reads, one request at a time,
and any request of a page that is still refused is tried again.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from typing import Any

from flows.loopback import LoopbackOnly
from flows.waiting import watch

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]
CREATES = "/create_flow_run"
LOCKS_FIRST: ContextVar[bool] = ContextVar("locks_first", default=False)
PATIENCE_SECONDS = 20.0
FIRST_WAIT_SECONDS = 0.05
MAX_WAIT_SECONDS = 1.0
BUSY = 503
STOP_SECONDS = 5  # pages keep connections open


class TriesAgain:
    """An ASGI application that gets requests of pages through to the one behind it, which may answer 503.

    Args:
        app: The application.
        patience_seconds: How long after its arrival a request is still repeated.
    """

    def __init__(self, app: App, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self._app, self._patience = app, patience_seconds
        self._one_at_a_time = asyncio.Semaphore(1)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope["path"].endswith(CREATES):
            async with self._one_at_a_time:
                LOCKS_FIRST.set(True)
                await self._answer(scope, receive, send)
        elif _is_of_a_page(scope):
            await self._answer(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        body = await _read(receive)
        deadline = time.monotonic() + self._patience
        wait = FIRST_WAIT_SECONDS
        while True:
            answer = _Answer(send, hold_busy=time.monotonic() + wait < deadline)
            # What one try notes in the scope is no matter of the next.
            own = {**scope, "state": {**scope.get("state", {})}}
            try:
                await self._app(own, _replay(body, receive), answer.send)
            except Exception:
                # Starlette sends the answer of an error's handler and raises the error all the same.
                if not answer.is_busy:
                    raise
            if not answer.is_busy:
                return
            # Not all at the same moment again.
            await asyncio.sleep(wait * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
            wait = min(2 * wait, MAX_WAIT_SECONDS)


def _is_of_a_page(scope: Message) -> bool:
    agents = [value for name, value in scope["headers"] if name == b"user-agent"]
    return not any(value.startswith(b"prefect/") for value in agents)


def lock_first() -> None:
    """Have Prefect begin those transactions with SQLite's lock in which ``LOCKS_FIRST`` is set."""
    from prefect.server.database.configurations import AioSqliteConfiguration

    begin = AioSqliteConfiguration.begin_transaction

    def begin_transaction(self: Any, session: Any, with_for_update: bool = False) -> Any:
        return begin(self, session, with_for_update or LOCKS_FIRST.get())

    AioSqliteConfiguration.begin_transaction = begin_transaction  # type: ignore[method-assign]


class _Answer:
    """Passes an answer on as it comes, but for one of 503, which is dropped if it is held."""

    def __init__(self, send: Send, *, hold_busy: bool) -> None:
        self._send, self._hold = send, hold_busy
        self.is_busy = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.is_busy = self._hold and message["status"] == BUSY
        if not self.is_busy:
            await self._send(message)


async def _read(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body"):
            return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()  # that the client went away

    return replay


def main() -> None:
    """Serve on the host and port of the command line."""
    import uvicorn
    from prefect.server.api.server import create_app
    from starlette.middleware import Middleware

    lock_first()
    app = create_app(final=True)
    app.user_middleware.insert(0, Middleware(TriesAgain))
    host, port = sys.argv[1], int(sys.argv[2])
    watch(f"http://{host}:{port}")
    uvicorn.run(
        LoopbackOnly(app), host=host, port=port, log_level="warning", timeout_graceful_shutdown=STOP_SECONDS
    )


if __name__ == "__main__":
    main()
