"""Takes jobs from a queue on a volume, one at a time, and ends when it is asked to.

QUEUE/new holds a JSON file for each job: {"lines": [[quantity, cents], ...], "seconds": how long it takes}. A job is taken
by moving it to QUEUE/taken, which only one worker manages; its result appears in QUEUE/done, whole, and then it is gone
from QUEUE/taken. What is found there by a worker that starts was left by one that was killed, and is put back.
"""

import json
import os
import sys
import time

QUEUE = os.environ.get("QUEUE", "/queue")
# Beside the queue other workers have their own; this folder is this container's, or an emptyDir.
RUN = os.environ.get("RUN", "/run/worker")
NAME = os.environ.get("NAME", "worker")
PAUSE = 0.05


def path(*parts: str) -> str:
    return os.path.join(QUEUE, *parts)


def asked_to_stop() -> bool:
    return os.path.exists(os.path.join(RUN, "stop"))


def put_back() -> None:
    """Returns jobs that an earlier life of this worker has left; NAME is the same in each."""
    for job in os.listdir(path("taken")):
        if job.startswith(NAME + "."):
            os.rename(path("taken", job), path("new", job.removeprefix(NAME + ".")))
            print("put back", job.removeprefix(NAME + "."), flush=True)


def take() -> str | None:
    """Moves the first new job to this worker's, and returns its name."""
    for job in sorted(os.listdir(path("new"))):
        try:
            os.rename(path("new", job), path("taken", f"{NAME}.{job}"))
        except FileNotFoundError:
            continue  # another worker was faster
        return job
    return None


def work(job: str) -> None:
    taken = path("taken", f"{NAME}.{job}")
    with open(taken) as file:
        order = json.load(file)
    print("taken", job, flush=True)
    time.sleep(order.get("seconds", 0))
    total = sum(quantity * cents for quantity, cents in order["lines"])
    with open(path("done", job + ".new"), "w") as file:
        json.dump({"total": total}, file)
    os.rename(path("done", job + ".new"), path("done", job))
    os.remove(taken)
    print("done", job, flush=True)


def run(once: bool) -> None:
    """Works until it is asked to stop; with `once`, until no job is left."""
    for folder in (path("new"), path("taken"), path("done"), RUN):
        os.makedirs(folder, exist_ok=True)
    put_back()
    while not asked_to_stop():
        job = take()
        if job is not None:
            work(job)
        elif once:
            return
        else:
            time.sleep(PAUSE)
    # Nothing is in hand from here on: SIGTERM, which ends a program at once, may come.
    with open(os.path.join(RUN, "stopped"), "w"):
        print("stopped", flush=True)
    while True:
        time.sleep(60)


def stop() -> None:
    """Asks the worker of this container to stop, and waits until it has: for a preStop hook."""
    with open(os.path.join(RUN, "stop"), "w"):
        pass
    while not os.path.exists(os.path.join(RUN, "stopped")):
        time.sleep(PAUSE)


def main(arguments: list[str]) -> int:
    match arguments:
        case []:
            run(once=False)
        case ["once"]:
            run(once=True)
        case ["stop"]:
            stop()
        case _:
            print("usage: worker [once|stop]", file=sys.stderr)
            return 2
    return 0
