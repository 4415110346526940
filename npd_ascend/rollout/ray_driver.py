"""The executor's hand in a Ray cluster: ``python -m npd_ascend.rollout.ray_driver ADDRESS``, with vLLM's interpreter.

Commands are JSON lines on stdin::

    {"seat": n, "do": "start", "env", "log", "command", "cpus", "npus"}  a worker, wherever there is room
    {"seat": n, "do": "say", "line": {...}}                              a command for that worker
    {"seat": n, "do": "kill"}

Answers are JSON lines on stdout, ``{"seat": n, "event": {...}}``: what the worker says, and ``placed``, ``unplaced``
(no node had room for ``place_s`` seconds) and ``died``. The end of stdin means that the executor is gone: all seats
are given up.
"""

from __future__ import annotations

import json
import os
import queue
import socket
import sys
import threading
import time
from dataclasses import dataclass
from typing import IO, Any

from npd_ascend.rollout.worker_actor import WorkerActor

_TICK_S = 0.1


@dataclass
class _Place:
    actor: Any
    pending: Any
    since: float
    placed: bool = False


class Driver:
    """Serves the executor.

    Args:
        answers: where answers are written.
        place_s: patience with a cluster that is not up yet, or has no room.
    """

    def __init__(self, answers: IO[str], place_s: float):
        self._answers, self._place_s = answers, place_s
        self._places: dict[int, _Place] = {}

    def connect(self, address: str) -> None:
        """Joins the cluster.

        Raises:
            RuntimeError: Ray is not there, or does not answer.
        """
        try:
            import ray
        except ImportError:
            raise RuntimeError(
                "rollouts on several nodes need Ray, which the rollout environment lacks: pip install "
                "'npd-ascend[ray]' there (requirements/rollout-cpu.txt names the version)"
            ) from None
        self._ray, deadline = ray, time.monotonic() + self._place_s
        host, _, port = address.rpartition(":")
        while True:  # Ray itself ends the process when nobody answers
            try:
                socket.create_connection((host, int(port)), timeout=2).close()
                break
            except (OSError, ValueError) as e:
                if isinstance(e, ValueError) or time.monotonic() > deadline:
                    raise RuntimeError(
                        f"no Ray cluster at {address} ({e}); is ray running on node 0, and is its port open?"
                    ) from None
                time.sleep(0.5)
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", namespace="npd")

    def serve(self, commands: queue.Queue[dict[str, Any]]) -> None:
        """Works until the process is ended."""
        while True:
            try:
                self._obey(commands.get(timeout=_TICK_S))
            except queue.Empty:
                self._listen()

    def _obey(self, command: dict[str, Any]) -> None:
        number, do = command["seat"], command["do"]
        if do == "start":
            needs: dict[str, Any] = {"num_cpus": command["cpus"]}
            if command["npus"]:
                needs["resources"] = {"NPU": command["npus"]}
            kind = self._ray.remote(WorkerActor).options(
                max_restarts=0, max_task_retries=0, max_concurrency=4, scheduling_strategy="SPREAD", **needs
            )
            actor = kind.remote(command["env"], command["log"], command["command"])
            self._places[number] = _Place(actor, actor.where.remote(), time.monotonic())
        elif (place := self._places.get(number)) is None:
            return
        elif do == "say":
            place.actor.say.remote(command["line"])
        elif do == "kill":
            del self._places[number]
            self._ray.kill(place.actor)

    def _listen(self) -> None:
        for number, place in list(self._places.items()):
            if not self._ray.wait([place.pending], timeout=0)[0]:
                if not place.placed and time.monotonic() - place.since > self._place_s:
                    del self._places[number]
                    self._ray.kill(place.actor)
                    self._say(number, "unplaced", text=f"no node has had room for {self._place_s:g} s")
                continue
            try:
                said = self._ray.get(place.pending)
            except Exception as e:  # the actor is gone: its process, its node, or the network to it
                del self._places[number]
                self._say(number, "died", why=f"lost by Ray: {str(e).strip().splitlines()[0]}")
                continue
            if not place.placed:
                place.placed = True
                self._say(number, "placed", node=said)
                said = []
            for event in said:
                self._answer(number, event)
            if any(event["event"] == "died" for event in said):
                del self._places[number]
                self._ray.kill(place.actor)
            else:
                place.pending = place.actor.hear.remote()

    def _say(self, number: int, event: str, **fields: Any) -> None:
        self._answer(number, {"event": event, **fields})

    def _answer(self, number: int, event: dict[str, Any]) -> None:
        self._answers.write(json.dumps({"seat": number, "event": event}) + "\n")
        self._answers.flush()


def main() -> None:
    """Entry of the process."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    driver = Driver(answers, float(os.environ.get("NPD_PLACE_S") or 60))
    commands: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_read, args=(sys.stdin, commands), daemon=True).start()
    try:
        driver.connect(sys.argv[1])
    except RuntimeError as e:
        answers.write(json.dumps({"seat": None, "event": {"event": "error", "kind": "user", "text": str(e)}}) + "\n")
        answers.flush()
        os._exit(2)
    driver.serve(commands)


def _read(stdin: IO[str], commands: queue.Queue[dict[str, Any]]) -> None:
    for line in stdin:
        commands.put(json.loads(line))
    os._exit(0)  # Ray ends the actors of a driver that is gone


if __name__ == "__main__":
    main()
