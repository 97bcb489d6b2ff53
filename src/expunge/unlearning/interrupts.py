"""Ctrl-C and SIGTERM, obeyed where nothing breaks: between two steps, where all can be saved, and after imports."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType


class Interrupts:
    """What became of the signals: the first one is only noted, for `check` to raise; a second one raises at once.

    `torn` says that the second one may have broken a step in two, so that the state is not worth saving.
    """

    def __init__(self) -> None:
        self.torn = False
        self._noted = False

    def check(self) -> None:
        """Raise the KeyboardInterrupt that was noted."""
        if self._noted:
            raise KeyboardInterrupt

    def note(self, number: int, frame: FrameType | None) -> None:
        """The signal's handler."""
        self.torn = self._noted
        if self.torn:
            raise KeyboardInterrupt
        self._noted = True


@contextmanager
def deferred_interrupts(
    numbers: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM),
) -> Iterator[Interrupts]:
    """A context in which the signals wait; outside the main thread, where Python has no handlers, nothing changes."""
    interrupts = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    before = {number: signal.signal(number, interrupts.note) for number in numbers}
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def whole_imports() -> Iterator[None]:
    """A context for imports of heavy libraries, which Ctrl-C does not break in two; it is obeyed at the end.

    torch imports numpy from C++, which swallows the interrupt, and half a numpy cannot be imported a second time.
    """
    heeded = [number for number in (signal.SIGINT,) if signal.getsignal(number) is not signal.SIG_IGN]
    with deferred_interrupts(heeded) as interrupts:
        try:
            yield
        finally:
            interrupts.check()
