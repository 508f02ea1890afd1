"""Takes jobs from a queue on a volume, one at a time, and ends when it is asked to.

QUEUE/new holds a JSON file for each job: {"lines": [[quantity, cents], ...], "seconds": how long it takes}. A job is taken
by moving it to QUEUE/taken, which only one worker manages; its result appears in QUEUE/done, whole, and then it is gone
from QUEUE/taken. What is found there by a worker that starts was left by one that was killed, and is put back.
"""

import json
import os
import sys
import time

PAUSE = 0.05  # seconds


class Worker:
    def __init__(self) -> None:
        # Read now, not when the module is imported: componentize-py does that when it builds.
        self.queue = os.environ.get("QUEUE", "/queue")
        # Two pods never have the same name, and a StatefulSet's keep theirs.
        self.name = os.environ.get("NAME", "worker")
        # Not the queue's: other workers have their own.
        self.folder = os.environ.get("RUN", "/run/worker")

    def run(self, once: bool) -> None:
        """Works until it is asked to stop; with `once`, until no job is left."""
        for folder in (self.path("new"), self.path("taken"), self.path("done"), self.folder):
            os.makedirs(folder, exist_ok=True)
        self.put_back()
        while not os.path.exists(self.flag("stop")):
            job = self.take()
            if job is not None:
                self.work(job)
            elif once:
                return
            else:
                time.sleep(PAUSE)
        # Nothing is in hand from here on: SIGTERM, which ends a program at once, may come.
        print("stopped", flush=True)
        with open(self.flag("stopped"), "w"):
            pass
        while True:
            time.sleep(60)

    def stop(self) -> None:
        """Asks the worker of this container to stop, and waits until it has: for a preStop hook."""
        with open(self.flag("stop"), "w"):
            pass
        while not os.path.exists(self.flag("stopped")):
            time.sleep(PAUSE)

    def put_back(self) -> None:
        """Returns the jobs that an earlier life of this worker has left, and forgets what that one was asked."""
        for flag in ("stop", "stopped"):
            if os.path.exists(self.flag(flag)):
                os.remove(self.flag(flag))
        for taken in os.listdir(self.path("taken")):
            if taken.startswith(self.name + "."):
                job = taken.removeprefix(self.name + ".")
                os.rename(self.path("taken", taken), self.path("new", job))
                print("put back", job, flush=True)

    def take(self) -> str | None:
        """Moves the first new job to this worker's, and returns its name."""
        for job in sorted(os.listdir(self.path("new"))):
            try:
                os.rename(self.path("new", job), self.taken(job))
            except FileNotFoundError:
                continue  # another worker was faster
            return job
        return None

    def work(self, job: str) -> None:
        with open(self.taken(job)) as file:
            order = json.load(file)
        print("taken", job, flush=True)
        time.sleep(order.get("seconds", 0))
        total = sum(quantity * cents for quantity, cents in order["lines"])
        with open(self.path("done", job + ".new"), "w") as file:
            json.dump({"total": total}, file)
        os.rename(self.path("done", job + ".new"), self.path("done", job))
        os.remove(self.taken(job))
        print("done", job, flush=True)

    def path(self, *parts: str) -> str:
        return os.path.join(self.queue, *parts)

    def taken(self, job: str) -> str:
        return self.path("taken", f"{self.name}.{job}")

    def flag(self, name: str) -> str:
        return os.path.join(self.folder, name)


def main(arguments: list[str]) -> int:
    match arguments:
        case []:
            Worker().run(once=False)
        case ["once"]:
            Worker().run(once=True)
        case ["stop"]:
            Worker().stop()
        case _:
            print("usage: worker [once|stop]", file=sys.stderr)
            return 2
    return 0
