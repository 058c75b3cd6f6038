"""Commands side by side: one a device at a time, failures told apart, stops and time limits heeded."""

from __future__ import annotations

import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest

from datasets.common import InputError
from training.jobs import CPU, Job, Pool, devices_of, last_words

# Says which device it was given, and from when to when it ran.
TIMED = "import os, time; a = time.time(); time.sleep(0.3); print(os.environ['CUDA_VISIBLE_DEVICES'], a, time.time())"


def job(name: str, code: str, folder: Path) -> Job:
    return Job(name, ("-c", code), folder / "logs" / f"{name}.txt")


def test_one_command_on_each_device_at_a_time(tmp_path: Path) -> None:
    jobs = [job(str(i), TIMED, tmp_path) for i in range(5)]
    found = dict(Pool(["3", "7"], timeout=60).run(jobs))
    assert set(found) == set(jobs) and set(found.values()) == {None}
    spans: dict[str, list[tuple[float, float]]] = {}
    for one in jobs:
        device, start, end = one.log.read_text().split()
        spans.setdefault(device, []).append((float(start), float(end)))
    assert set(spans) == {"3", "7"}
    for own in map(sorted, spans.values()):
        assert all(before[1] <= after[0] for before, after in pairwise(own))


def test_a_failure_is_told_and_stops_no_other(tmp_path: Path) -> None:
    jobs = [
        job("bad", "import sys; print('why'); sys.exit('no such thing\\n')", tmp_path),
        job("good", TIMED, tmp_path),
    ]
    found = {one.name: problem for one, problem in Pool([CPU], timeout=60).run(jobs)}
    assert found == {"bad": "exit code 1: no such thing", "good": None}
    assert last_words(jobs[0].log) == "no such thing"


def test_a_command_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    started = time.monotonic()
    ((_, problem),) = Pool([CPU], timeout=0.5).run([job("slow", "import time; time.sleep(60)", tmp_path)])
    assert problem == "ended after 0 s, the longest that a run may take"
    assert time.monotonic() - started < 20


def test_a_stop_ends_what_runs_and_starts_nothing(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    code = f"""
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
pathlib.Path({str(begun)!r}).touch()
time.sleep(60)
"""
    jobs = [job("first", code, tmp_path), job("second", TIMED, tmp_path)]
    found = list(Pool([CPU], timeout=60, should_stop=begun.exists).run(jobs))
    assert found == [(jobs[0], None)]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_command_without_a_handler_yet_was_stopped_and_did_not_fail(name: str, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    # Its own SIGINT, as a terminal sends it to all processes at once.
    code = f"import os, pathlib, signal, time; pathlib.Path({str(begun)!r}).touch()\n"
    code += "os.kill(os.getpid(), signal.SIGINT)\n" if name == "SIGINT" else "time.sleep(60)\n"
    first = job("first", code, tmp_path)
    assert list(Pool([CPU], timeout=60, should_stop=begun.exists).run([first])) == [(first, None)]
    # The same where nobody asked for it is a failure.
    killed = job("killed", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)", tmp_path)
    assert list(Pool([CPU], timeout=60).run([killed])) == [(killed, "exit code -9: it said nothing")]


def test_what_fails_by_itself_while_it_stops_is_told(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    code = f"import pathlib, sys; pathlib.Path({str(begun)!r}).touch(); sys.exit('the disk is full')"
    first = job("first", code, tmp_path)
    found = list(Pool([CPU], timeout=60, should_stop=begun.exists).run([first]))
    assert found == [(first, "exit code 1: the disk is full")]


def test_a_log_that_cannot_be_written_ends_all(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    slow, bad = job("slow", "import time; time.sleep(60)", tmp_path), job("bad", TIMED, tmp_path / "file")
    raised: list[OSError] = []

    def run() -> None:
        try:
            list(Pool(["0", "1"], timeout=60).run([slow, bad, bad]))
        except OSError as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)  # a pool that waits for ever must not keep the tests waiting
    thread.start()
    thread.join(30)
    assert not thread.is_alive() and "file" in str(raised[0])


def test_a_caller_that_leaves_ends_what_runs(tmp_path: Path) -> None:
    begun, ended = tmp_path / "begun", tmp_path / "ended"
    slow = f"""
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path({str(ended)!r}).touch(), sys.exit(0)))
pathlib.Path({str(begun)!r}).touch()
time.sleep(60)
"""
    short = f"import pathlib, time\nwhile not pathlib.Path({str(begun)!r}).exists(): time.sleep(0.05)"
    with pytest.raises(KeyError):
        for _ in Pool(["0", "1"], timeout=60).run([job("slow", slow, tmp_path), job("short", short, tmp_path)]):
            raise KeyError
    assert ended.exists()


def test_nothing_starts_once_the_pool_is_closed(tmp_path: Path) -> None:
    first, second = job("first", TIMED, tmp_path), job("second", TIMED, tmp_path)
    found = list(Pool([CPU], timeout=60, closed=first.log.exists).run([first, second]))
    assert found == [(first, None)]


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert devices_of(0, available=4) == [CPU]
    assert devices_of(2, available=4) == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6")
    assert devices_of(2, available=2) == ["5", "6"]
    with pytest.raises(InputError, match="--gpus 3, but PyTorch finds 2 here"):
        devices_of(3, available=2)
