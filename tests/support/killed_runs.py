"""Trains the tiny network again and again, killing the process each time, until it was killed often enough.

Each attempt is a process that goes on where the last one was killed. `python killed_runs.py DATA RUNS KILLS` leaves the run
`undisturbed` and the runs `killed-0`, `killed-1`, ... in the folder RUNS, and prints what happened as JSON.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback

import narrow_network

from alexnet_edge.training.recipe import TrainSettings
from alexnet_edge.training.run import train

EPOCHS = 30


def attempt(settings: TrainSettings) -> int:
    """Start training in a process of its own, on the run that is there or a new one."""
    pid = os.fork()
    if pid:
        return pid
    try:
        train(settings, go_on=True)
    except BaseException:  # noqa: BLE001 (reported by its trace)
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def ended(pid: int, within_s: float) -> bool:
    """Whether the process ends by itself in this time."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            if status:
                sys.exit(f"an attempt failed with status {status}")
            return True
        time.sleep(0.002)
    return False


def main(data: str, runs: str, kills: int) -> None:
    quick = {**narrow_network.QUICK, "epochs": EPOCHS, "ema": 0.1, "dropout": 0.5}
    quick["save_minutes"] = 0.0  # a snapshot after every step
    settings = TrainSettings(data=data, runs=runs, arch="tiny", name="undisturbed", **quick)
    begin = time.monotonic()
    if not ended(attempt(settings), 600):
        sys.exit("the undisturbed run did not end")
    whole_s = time.monotonic() - begin
    moments, killed, run = random.Random(0), 0, 0
    while True:
        pid = attempt(TrainSettings.from_json({**settings.to_json(), "name": f"killed-{run}"}))
        if killed == kills:
            if not ended(pid, 600):
                sys.exit("the last attempt did not end")
            break
        if ended(pid, moments.uniform(0, 4 * whole_s / kills)):
            run += 1  # it reached its end before it was killed: on with another
            continue
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        killed += status == signal.SIGKILL
    print(json.dumps({"killed": killed, "runs": run + 1, "undisturbed_s": whole_s}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
