"""Ending a run before its time: Ctrl-C, SIGTERM, the time budget; always after a whole step, with a checkpoint."""

from __future__ import annotations

import logging
import signal as signals
import threading
import time
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)

SIGNALS = (signals.SIGINT, signals.SIGTERM)


class StopRequest:
    """Collects this process's wishes to stop; `agreed` is set by the loop, at the same step in all processes.

    A context: within it the first Ctrl-C or SIGTERM is a wish and a second one ends the process at once. With several
    processes later signals change nothing, since torchrun passes on a Ctrl-C that the terminal sent to all already.
    """

    def __init__(self, max_minutes: float | None, several_processes: bool = False) -> None:
        self.deadline = time.monotonic() + 60 * max_minutes if max_minutes else float("inf")
        self.several_processes = several_processes
        self.signal: signals.Signals | None = None
        self.agreed = False
        self.previous: dict[signals.Signals, Any] = {}

    @property
    def wanted(self) -> bool:
        return self.signal is not None or time.monotonic() > self.deadline

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self.previous = {s: signals.signal(s, self._on_signal) for s in SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.previous.items():
            signals.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal = signals.Signals(number)
            again = "" if self.several_processes else "; once more ends it at once, without"
            log.warning("%s: will stop after this step with a checkpoint%s", self.signal.name, again)
        elif not self.several_processes:
            self.__exit__()
            if signals.getsignal(number) is signals.SIG_IGN:  # as shells start what they run in the background
                raise KeyboardInterrupt
            signals.raise_signal(number)
