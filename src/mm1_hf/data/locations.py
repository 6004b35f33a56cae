"""Finds the data of a source that may be in several places, such as a data set that has moved to another id on the Hub."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from datasets import config
from huggingface_hub import HfApi, is_offline_mode
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError


_TIMEOUT_SECONDS = 10


def first_that_answers(places: str | Sequence[str]) -> str:
    """
    The first of several places that has data: a local file, folder or pattern that exists, or an id that the Hub knows.
    Where the Hub cannot be reached, the first id whose data are in the cache of `datasets` is taken.

    Args:
        places: paths or ids, the preferred one first. A single place is returned as it is: what is wrong with it is
            found when it is read.

    Raises:
        ValueError: none of several places answers, or the list is empty.
    """
    if isinstance(places, str):
        return places
    if not places:
        raise ValueError("The list of paths is empty; give at least one path or id.")
    if len(places) == 1:
        return places[0]
    answers = {}
    for place in places:
        answer = _answer(place)
        if answer is None:
            return place
        answers[place] = answer
    listed = "; ".join(f"{place}: {answer}" for place, answer in answers.items())
    raise ValueError(
        f"None of the {len(answers)} places of these data answers ({listed}). Check the network, give another id, or the "
        "path of a local copy."
    )


def local_copy(path: str, name: str | None) -> str:
    """
    The path of a configuration of a data set in a local copy: the folder of the configuration's name, if the copy has
    one, as clones of the Hub's repositories do.

    Args:
        path: a file, a folder, a pattern, or an id on the Hub.
        name: name of the configuration, if any.
    """
    inner = Path(path).expanduser() / (name or "")
    return str(inner) if name and inner.is_dir() else path


def is_local(path: str) -> bool:
    """
    Whether a path names something on this machine, rather than an id on the Hub.

    Args:
        path: a file, a folder, a pattern, or an id on the Hub.
    """
    path = os.path.expanduser(path)
    return os.path.exists(path) or bool(glob.has_magic(path) and glob.glob(path, recursive=True))


def _answer(place: str) -> str | None:
    """What is wrong with a place, or `None` if it has data."""
    if is_local(place):
        return None
    try:
        HfApi().dataset_info(place, timeout=_TIMEOUT_SECONDS)
    except HFValidationError:
        return "there is no such file or folder"
    except RepositoryNotFoundError:
        return "the Hub has no public data set of this name"
    except HfHubHTTPError as error:
        return None if _is_cached(place) else f"the Hub answers {error.response.status_code}"
    except Exception as error:
        # Whatever the reason, the Hub cannot be asked: offline mode, no network, no proxy, a wrong certificate.
        reason = "HF_HUB_OFFLINE is set" if is_offline_mode() else type(error).__name__
        return (
            None if _is_cached(place) else f"the Hub cannot be reached ({reason}), and the data are not in the cache"
        )
    return None


def _is_cached(place: str) -> bool:
    """Whether `datasets` has prepared this data set on this machine before."""
    return (Path(config.HF_DATASETS_CACHE) / place.replace("/", "___")).is_dir()
