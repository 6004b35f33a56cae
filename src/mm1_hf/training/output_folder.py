"""The output folder of a run: it can be written to, and only one run at a time does so."""

import os
import socket
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers.utils import logging


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

# Trainer does not upload files whose name begins like this.
LOCK_NAME = "_mm1_run.lock"

Result = TypeVar("Result")

logger = logging.get_logger(__name__)

# Folders that a run of this process holds, with the open file of the lock. Closing any file of a locked path would
# release the lock, so a path is opened once.
_held: dict[str, Any] = {}


@contextmanager
def hold(folder: str | os.PathLike) -> Generator[None]:
    """
    Reserves an output folder for a run: for all its processes, inside a `with` block. The folder is created if it does
        not
    exist. The operating system releases the lock when the process ends, however it ends.

    Args:
        folder: the output folder.

    Raises:
        ValueError: another run uses the folder, or it cannot be written to.
    """
    path = os.path.realpath(folder)
    if path in _held:
        yield
        return
    try:
        on_main_process(lambda: _lock(path))
        # Also on the processes that hold no lock themselves, so that all of them go through the same calls.
        _held.setdefault(path, None)
        yield
    finally:
        file = _held.pop(path, None)
        if file is not None:
            file.close()


def on_main_process(action: Callable[[], Result]) -> Result:
    """
    Runs an action on the main process only, and returns its result on every process.

    Args:
        action: the action; its result must be picklable.

    Raises:
        ValueError: the action failed with a `ValueError` or `OSError`. It is raised on every process, so that no
            process waits for another that has stopped.
    """
    state = PartialState()
    outcome: list[Any] = [None, None]
    if state.is_main_process:
        try:
            outcome[0] = action()
        except (ValueError, OSError) as error:
            outcome[1] = str(error)
    if state.num_processes > 1:
        broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise ValueError(outcome[1])
    return outcome[0]


def _lock(path: str) -> None:
    try:
        os.makedirs(path, exist_ok=True)
        file = open(Path(path) / LOCK_NAME, "a+", encoding="utf-8")  # noqa: SIM115 -- open for as long as the run
    except OSError as error:
        raise ValueError(
            f"The output folder {path} cannot be written to: {error.strerror}. Give a folder that this user may "
            "write to as output_dir."
        ) from error
    if fcntl is not None:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            owner = file.read(200).strip()
            file.close()
            raise ValueError(
                f"Another run uses the output folder {path} ({owner}). Wait until it has ended, or give this run an "
                "output_dir of its own."
            ) from None
        except OSError as error:
            logger.warning(
                f"The file system of {path} has no locks ({error.strerror}): make sure that no other run uses "
                "this folder."
            )
    file.truncate(0)
    try:
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
    except OSError as error:
        file.close()
        raise ValueError(
            f"The output folder {path} cannot be written to: {error.strerror}. Free space there, or give "
            "another output_dir."
        ) from error
    _held[path] = file
