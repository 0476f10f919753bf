"""A server on loopback answers to names of its machine alone."""

import asyncio

import pytest

from flows.loopback import LoopbackOnly, is_loopback


def ask(kind, **headers):
    """Send a request; return the first message of the answer, and whether the app was asked."""
    asked, sent = [], []

    async def app(scope, receive, send):
        asked.append(scope["type"])
        await send({"type": "http.response.start", "status": 200})

    async def send(message):
        sent.append(message)

    named = [(name.encode(), value.encode()) for name, value in headers.items()]
    asyncio.run(LoopbackOnly(app)({"type": kind, "headers": named}, None, send))
    return sent[0], bool(asked)


OURS = ["127.0.0.1:4200", "localhost:8000", "localhost", "[::1]:4200", "LOCALHOST:1"]
FOREIGN = [
    "evil.example:4200",
    "127.0.0.1.evil.example",
    "localhost.evil.example:4200",
    "127.0.0.1@evil.example",
    "10.0.0.5:4200",
    "0.0.0.0",  # noqa: S104 - refused
    "[::ffff",
]


@pytest.mark.parametrize("host", OURS)
def test_names_of_this_machine_are_answered(host):
    assert ask("http", host=host, origin=f"http://{host}") == (
        {"type": "http.response.start", "status": 200},
        True,
    )


@pytest.mark.parametrize("host", FOREIGN)
def test_a_foreign_host_or_origin_is_refused(host):
    for headers in ({"host": host}, {"host": "127.0.0.1:1", "origin": f"http://{host}"}):
        answer, asked = ask("http", **headers)
        assert (answer["status"], asked) == (403, False)
        answer, asked = ask("websocket", **headers)
        assert (answer["type"], asked) == ("websocket.close", False)


def test_a_page_without_an_origin_of_its_own_is_refused():
    assert ask("http", host="localhost:1", origin="null")[0]["status"] == 403
    assert not is_loopback("null")


def test_programs_that_send_no_origin_and_start_up_are_let_through():
    assert ask("http", host="localhost:1")[1]
    assert ask("lifespan")[1]
