"""What a page asks of Prefect is done though its database is busy."""

import asyncio

import pytest

from flows.prefect_server import TriesAgain


class Busy:
    """Answers 503 so many times, then 201 with the body it was sent."""

    def __init__(self, times, *, raises=False):
        self.left, self.raises, self.bodies, self.at_once, self.most = times, raises, [], 0, 0

    async def __call__(self, scope, receive, send):
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        self.bodies.append((await receive())["body"])
        await asyncio.sleep(0)
        self.at_once -= 1
        self.left -= 1
        busy = self.left >= 0
        await send({"type": "http.response.start", "status": 503 if busy else 201, "headers": []})
        await send({"type": "http.response.body", "body": b"busy" if busy else self.bodies[-1]})
        if busy and self.raises:
            raise RuntimeError("as Starlette does once the answer to an error is sent")


async def ask(app, path="/api/deployments/1/create_flow_run", agent=b"Mozilla/5.0"):
    parts = [
        {"type": "http.request", "body": b"on", "more_body": True},
        {"type": "http.request", "body": b"ce", "more_body": False},
    ]
    told = []

    async def receive():
        return parts.pop(0)

    async def send(message):
        told.append(message)

    await app({"type": "http", "path": path, "headers": [(b"user-agent", agent)]}, receive, send)
    return told[0]["status"], b"".join(message["body"] for message in told[1:])


@pytest.mark.parametrize("raises", [False, True])
def test_a_busy_database_is_asked_again_with_the_same_body(raises):
    behind = Busy(3, raises=raises)
    assert asyncio.run(ask(TriesAgain(behind))) == (201, b"once")
    assert behind.bodies == [b"once"] * 4


def test_patience_ends_with_the_answer_that_there_is():
    assert asyncio.run(ask(TriesAgain(Busy(10**6), patience_seconds=0.3))) == (503, b"busy")


def test_clients_that_ask_again_themselves_are_told_at_once():
    behind = Busy(1)
    told = asyncio.run(ask(TriesAgain(behind), "/api/logs/", b"prefect/3.8.8 (API 0.8.4)"))
    assert (told[0], len(behind.bodies)) == (503, 1)
    assert asyncio.run(ask(TriesAgain(Busy(1)), "/api/flow_runs/1/set_state"))[0] == 201


def test_runs_are_created_one_at_a_time():
    async def all_at_once():
        behind = Busy(5)
        app = TriesAgain(behind)
        return behind, await asyncio.gather(*(ask(app) for _ in range(30)))

    behind, told = asyncio.run(all_at_once())
    assert told == [(201, b"once")] * 30
    assert behind.most == 1
