"""How is a training run stopped by its user without losing anything?"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from kcpr_safety.errors import KcprError


class Interrupted(KcprError):
    """Training was stopped by its user; everything is saved."""


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; a second one interrupts at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.getsignal(signal.SIGINT)

    def request(*_: object) -> None:
        event.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, request)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)
