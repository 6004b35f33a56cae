"""Ends the processes of a run together with the process that started them, also when that one is killed by `kill -9`."""

import ctypes
import os
import signal
import sys


_SET_SIGNAL_AT_PARENTS_DEATH = 1
_registered = _active = False


def end_children_with_this_process(active: bool = True) -> None:
    """
    From now on, processes that this one forks are killed when it dies. Without this, the worker processes of a killed run
    would go on with their tasks beside those of the resumed run. Nothing happens on systems other than Linux.

    Args:
        active: whether this is so. Processes that were forked before stay as they are.
    """
    global _registered, _active
    _active = active
    if sys.platform == "linux" and not _registered:
        os.register_at_fork(after_in_child=_die_with_parent)
        _registered = True


def _die_with_parent() -> None:
    if _active:
        ctypes.CDLL(None).prctl(_SET_SIGNAL_AT_PARENTS_DEATH, signal.SIGKILL)
