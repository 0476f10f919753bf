"""A command that is stopped by a signal ends in order, with the exit code that shells expect."""

import os
import pty
import signal
import subprocess
import sys
import time

import pytest

COMMAND = """
import time
import typer
from flows import stop_signals
from flows.cli import _errors

app = typer.Typer()

@app.command()
def work(target: str, seconds: float) -> None:
    with _errors():
        try:
            print("ready", flush=True)
            time.sleep(60)
        finally:
            # What a terminal that is gone must not keep from being done.
            print("saving", flush=True)
            time.sleep(seconds)
            open(target, "w").write("saved")

stop_signals.listen()
app()
"""


def hear_every_signal():
    # The tests themselves may run in the background, or behind nohup.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def start(target, seconds=0.0, **options):
    options = {"preexec_fn": hear_every_signal} | options
    return subprocess.Popen([sys.executable, "-c", COMMAND, str(target), str(seconds)], **options)


def ready(process):
    assert process.stdout.readline().strip() == b"ready"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_each_signal_saves_and_has_its_exit_code(tmp_path, number, code):
    process = start(tmp_path / "saved", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    ready(process)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == code
    assert (tmp_path / "saved").read_text() == "saved"
    assert error.decode().strip() == "stopped; the same command goes on from what was finished"


def test_a_terminal_that_is_closed_stops_it_once_and_it_still_saves(tmp_path):
    main, other = pty.openpty()
    process = start(tmp_path / "saved", 0.5, stdin=other, stdout=other, stderr=other, start_new_session=True)
    os.close(other)
    told = b""
    while b"ready" not in told:
        told += os.read(main, 100)
    os.close(main)  # nothing can be written there any more
    process.send_signal(signal.SIGHUP)  # by the kernel
    time.sleep(0.2)
    process.send_signal(signal.SIGHUP)  # and by the shell
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 129
    assert (tmp_path / "saved").read_text() == "saved"


def test_under_nohup_a_closed_terminal_is_no_reason_to_stop(tmp_path):
    process = start(
        tmp_path / "saved",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    ready(process)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_processes_of_a_run_take_each_for_a_request(number):
    code = f"""
import os
from lmcore.run_process import StopRequest
stop = StopRequest()
assert not stop()
os.kill(os.getpid(), {int(number)})
print(stop())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
