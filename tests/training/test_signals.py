"""Stop signals in processes of their own: the flag, the second signal, the handlers put back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from training.signals import STOP_SIGNALS, StopRequest

ROOT = Path(__file__).resolve().parents[2]

LOOP = """
import sys, time
from training.signals import StopRequest
with StopRequest() as stop:
    print("ready", flush=True)
    for step in range(2000):
        time.sleep(0.005)
        if stop.requested and "stubborn" not in sys.argv:
            break
print("saved after", stop.signal_name, flush=True)
"""


def start(*argv: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", LOOP, *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_ends_the_loop_after_the_step(number: signal.Signals) -> None:
    process = start()
    process.send_signal(number)
    out, err = process.communicate(timeout=10)
    assert out == f"saved after {number.name}\n"
    assert err == f"{number.name}: stopping after this step; send it again to stop at once\n"
    assert process.returncode == 0


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_process_at_once(second: signal.Signals) -> None:
    process = start("stubborn")
    process.send_signal(signal.SIGTERM)
    time.sleep(0.7)
    assert process.poll() is None
    sent = time.monotonic()
    process.send_signal(second)
    out, _ = process.communicate(timeout=10)
    assert time.monotonic() - sent < 2
    assert process.returncode == -second
    assert out == ""


def test_one_request_that_arrives_twice_is_one_request() -> None:
    """As from a scheduler that signals the launcher and the worker, the launcher passing it on."""
    process = start()
    for _ in range(5):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.001)
    out, _ = process.communicate(timeout=10)
    assert (out, process.returncode) == ("saved after SIGTERM\n", 0)


def test_workers_under_torchrun_finish_their_step(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(LOOP + f"open({str(tmp_path)!r} + '/done', 'w').write(stop.signal_name)\n")
    launcher = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert launcher.stdout is not None
    assert launcher.stdout.readline() == "ready\n"
    launcher.send_signal(signal.SIGTERM)
    launcher.communicate(timeout=40)
    assert (tmp_path / "done").read_text() == "SIGTERM"


def test_the_handlers_from_before_are_put_back() -> None:
    received: list[int] = []
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    mine = signal.signal(signal.SIGUSR1, lambda number, _: received.append(number))
    try:
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGUSR1)
            assert stop.requested
            assert (stop.signal_name, received) == ("SIGUSR1", [])
        signal.raise_signal(signal.SIGUSR1)
        assert received == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, mine)
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before
