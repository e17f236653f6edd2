"""The processes of a run on several hosts: who is alive, who has failed, and where all stop together.

Each process leaves signs of life in the key-value store of JAX's coordination service, and what ended it. A thread
reads those of the others. So a process that is gone, or failed alone, ends all within train.host_timeout with one line,
where each would wait in a collective for ever, or until JAX aborts it.

Asked to stop, the processes agree on a point: all tell how many points they have passed (`ibtpo.interruption`), held
before the next one meanwhile, and stop at the first suitable one from the largest number on.
"""

import atexit
import contextlib
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from ibtpo import native_messages, parallel
from ibtpo.errors import UserError, one_line
from ibtpo.interruption import GIVE_UP, STOP, Interruption, at_end, end_now

_ROOT = "ibtpo/"
_OWN_ERROR = 3.0  # seconds that a process has to raise its own error, once another one has failed
_LINGER = 8.0  # seconds that a process which failed stays for the others to read why
_GO_ON = "run the same command on all hosts to continue from the newest checkpoint"


@contextlib.contextmanager
def connected(timeout: float, interruption: Interruption) -> Iterator[None]:
    """Connects the processes of the job and watches the others within it; nothing where there is only one.

    timeout: seconds without a sign of life after which a process is gone.
    """
    if parallel.job() is None:
        yield
        return
    with contextlib.ExitStack() as stack:
        aborted = [_cannot_connect]  # what to do then
        stack.enter_context(native_messages.taken(lambda report: aborted[0](report)))
        parallel.initialize(timeout)
        alone = jax.process_count() == 1  # which starts the devices
        interruption.keep()
        if alone:
            stack.close()
            yield
            return
        watch = _Watch(timeout, interruption)
        aborted[0] = watch.aborted
        stack.enter_context(at_end(watch.announce))
        watch.start()
        interruption.request = watch.request
        try:
            yield
            watch.finish()
        except BaseException as error:
            watch.fail(error)
            raise


def _cannot_connect(report: str) -> None:
    """JAX aborts where the processes of a job do not all come."""
    end_now(
        1,
        f"error: the {os.environ.get('JAX_NUM_PROCESSES', '')} processes of this job did not all connect to "
        f"{os.environ.get('JAX_COORDINATOR_ADDRESS', 'the first one')} within {parallel.CONNECT_SECONDS} seconds: "
        "start the same command on every host",
    )


def first_says(flag: bool) -> bool:
    """The first host's flag, on all hosts: all have to do the same."""
    return bool(first_says_each([flag])[0])


def first_says_each(flags: Sequence[bool]) -> np.ndarray:
    """[n] the first host's flags, on all hosts, of which each gives as many."""
    found = np.array(flags, bool)
    return found if jax.process_count() == 1 else np.asarray(multihost_utils.broadcast_one_to_all(found), bool)


def stop_between_updates(interruption: Interruption, step: int) -> bool:
    """Whether all processes stop before this step: asked by a signal to one of them, or by JAX's preemption notice."""
    stop = interruption.between_updates()
    if jax.process_count() > 1:
        with contextlib.suppress(RuntimeError):  # jax_enable_preemption_service is off
            if multihost_utils.reached_preemption_sync_point(step):
                interruption.reason = interruption.reason or "preemption notice"
                return True
    return stop


class _Watch:
    """The thread that leaves this process's signs of life and reads those of the others."""

    def __init__(self, timeout: float, interruption: Interruption):
        from jax._src import distributed  # the client has no public name; Orbax takes it from here too

        self.client: Any = distributed.global_state.client
        self.me, self.count = jax.process_index(), jax.process_count()
        self.timeout, self.interruption = timeout, interruption
        self.interval = min(1.0, timeout / 10)
        self.limit = timeout - 2 * self.interval  # so that this process has ended within the timeout
        self.names = {i: f"process {i}" for i in range(self.count)}
        self._seen: dict[int, str] = {}  # the last sign of life of each
        self._heard: dict[int, float] = {}  # when it came, by this process's clock
        self._failed: dict[int, float] = {}  # when the end of another was read
        self._reached = self._judged = time.monotonic()  # the service; the last look
        self._ended = threading.Event()  # this process has told its end
        self._own: tuple[int, str] | None = None  # exit code and line of its own error
        self._silent = False  # the service is not to be asked any more
        self._over = threading.Event()  # all have finished
        self._answered: set[str] = set()
        self._holding = ""  # what is being agreed on, with the interruption's lock held

    def start(self) -> None:
        self.client.key_value_set(f"{_ROOT}name/{self.me}", socket.gethostname(), allow_overwrite=True)
        for target in (self._tick_for_ever, self._judge_for_ever):
            threading.Thread(target=target, name="ibtpo-hosts", daemon=True).start()

    # Signs of life.

    def _tick_for_ever(self) -> None:
        number = 0
        while not self._over.is_set():
            number += 1
            with contextlib.suppress(Exception):  # the judge sees that the service is away
                self.client.key_value_set(f"{_ROOT}alive/{self.me}", str(number), allow_overwrite=True)
                told = {key.removeprefix(_ROOT): value for key, value in self.client.key_value_dir_get(_ROOT)}
                self._reached = time.monotonic()
                self._read(told)
            time.sleep(self.interval / 10 if self._holding else self.interval)

    def _read(self, told: dict[str, str]) -> None:
        now = time.monotonic()
        for i in range(self.count):
            if name := told.get(f"name/{i}"):
                self.names[i] = f"process {i} (host {name})"
            sign = told.get(f"alive/{i}", "")
            if self._seen.get(i) != sign or f"end/{i}" in told:
                self._seen[i], self._heard[i] = sign, now
        self._read_ends({i: json.loads(told[f"end/{i}"]) for i in range(self.count) if f"end/{i}" in told})
        for kind in (STOP, GIVE_UP):
            if f"{kind}/asked" in told:
                self._agree(kind, told)

    def _judge_for_ever(self) -> None:
        while not self._over.wait(self.interval):
            now = time.monotonic()
            if now - self._judged > 3 * self.interval + 2:  # this process itself was held up
                self._reached = now
                self._heard = dict.fromkeys(self._heard, now)
            self._judged = now
            if now - self._reached > self.limit:
                self._lost(0)
            for i, heard in list(self._heard.items()):
                if i != self.me and now - heard > self.limit:
                    self._lost(i)

    def _lost(self, index: int) -> None:
        end_now(1, f"error: {self.names[index]} is gone: no sign of life for {self.limit:g} seconds; {_GO_ON}")

    def aborted(self, report: str) -> None:
        """JAX's coordination client is about to abort this process."""
        self._silent = True  # it holds the locks that a call of it would wait for
        if self._own is not None:
            time.sleep(3)  # this process is about to leave with an error of its own, unless it waits in such a call
            end_now(*self._own)
        found = re.search(r"/task:(\d+)", report)
        end_now(1, f"error: {self.names.get(int(found[1]) if found else 0)} is gone; {_GO_ON}")

    # The ends of processes.

    def announce(self, code: int, line: str) -> None:
        """Tells the others the end of this process; the first, which holds the service, stays until they know."""
        self._ended.set()
        if self._silent:
            return
        with contextlib.suppress(Exception):
            told = json.dumps({"code": code, "line": line})
            self.client.key_value_set(f"{_ROOT}end/{self.me}", told, allow_overwrite=True)
        until = time.monotonic() + _LINGER
        while time.monotonic() < until and not self._all_ended():
            time.sleep(0.1)
        if self.me == 0 and not self._silent:
            time.sleep(1.0)  # for the others to have seen it too

    def _all_ended(self) -> bool:
        if self._silent:
            return True
        with contextlib.suppress(Exception):
            ended = {int(key.rpartition("/")[2]) for key, _ in self.client.key_value_dir_get(f"{_ROOT}end/")}
            gone = {i for i, heard in self._heard.items() if time.monotonic() - heard > min(self.timeout, 5)}
            return len(ended | gone | {self.me}) == self.count
        return True  # the service is gone

    def _read_ends(self, ends: dict[int, dict]) -> None:
        if self._ended.is_set():
            return
        for i, end in ends.items():
            if i == self.me or end.get("finished"):
                continue
            since = self._failed.setdefault(i, time.monotonic())
            if end["code"] == 0:
                end_now(0, f"{end['line']} (on {self.names[i]})")
            elif time.monotonic() - since > _OWN_ERROR:
                line = end["line"].removeprefix("error: ")
                end_now(end["code"], f"error: {self.names[i]} failed: {line}")

    def finish(self) -> None:
        """The end of a run that went well: all processes leave JAX together, still watched."""
        self.client.key_value_set(f"{_ROOT}end/{self.me}", json.dumps({"finished": True}), allow_overwrite=True)
        self.client.wait_at_barrier("ibtpo/finished", 1000 * 24 * 3600)
        self._over.set()
        jax.distributed.shutdown()

    def fail(self, error: BaseException) -> None:
        """An error of this process. Where it may be the echo of another one's end, that is waited for first."""
        if _is_of_a_collective(error):
            time.sleep(self.timeout + 3 * self.interval)
        code = 2 if isinstance(error, UserError) else 1
        text = " ".join(str(error).split()) if type(error).__module__.startswith("ibtpo") else one_line(error)
        self._own = code, f"error: {text}"
        self.announce(*self._own)
        # JAX would wait at its own barrier for processes that have ended.
        atexit.register(_leave, code)

    # Stopping together.

    def request(self, kind: str, reason: str) -> None:
        """Asks all processes to stop, or to give up their sampling."""
        with contextlib.suppress(Exception):  # asked already, or the service is gone
            self.client.key_value_set(f"{_ROOT}{kind}/asked", f"{reason} on {self.names[self.me]}")

    def _agree(self, kind: str, told: dict[str, str]) -> None:
        """One look at what is being agreed on: this process answers, held at its next point; with all answers in it
        goes on."""
        interruption = self.interruption
        if kind in self._answered or (self._holding and self._holding != kind):
            return
        if not self._holding:
            interruption.lock.acquire()
            self._holding = kind
            answer = "done" if interruption.done else "early" if interruption.early else str(interruption.count)
            self.client.key_value_set(f"{_ROOT}{kind}/{self.me}", answer, allow_overwrite=True)
            return
        answers = [told.get(f"{kind}/{i}") for i in range(self.count)]
        if None in answers:
            return
        reason = told[f"{kind}/asked"]
        if "done" not in answers and "early" in answers:
            self._ended.set()
            end_now(0, f"{reason}: nothing new to save yet; run the same command to begin again where it stood")
        if "done" not in answers:
            interruption.settle(kind, 1 + max(int(answer) for answer in answers if answer), reason)
        self._answered.add(kind)
        self._holding = ""
        interruption.lock.release()


def _is_of_a_collective(error: BaseException) -> bool:
    """Whether an error may come from another process's end, in the middle of a collective."""
    if isinstance(error, UserError) or type(error).__module__.startswith("ibtpo"):
        return False
    text = str(error)
    return "RESOURCE_EXHAUSTED" not in text and (
        isinstance(error, jax.errors.JaxRuntimeError)
        or re.match(r"[A-Z_]{6,}: ", text) is not None
        or "Gloo" in text
        or "coordination" in text
    )


def _leave(code: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)
