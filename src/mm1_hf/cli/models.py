"""Finds the models that users name: folders and files, or Hub ids, although the Hub may be out of reach."""

from pathlib import Path

from huggingface_hub import HfApi, is_offline_mode, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)


_TIMEOUT_SECONDS = 10


def find_model(name: str) -> str:
    """
    Asks the Hub once whether it has a model, because without a network `from_pretrained` asks for each file of the model
    again and again, for minutes.

    Args:
        name: a folder, a file or a Hub id.

    Returns:
        The name, or, if the Hub cannot be reached, the folder of its local cache that holds the model.

    Raises:
        ValueError: there is neither such a folder nor such a model.
    """
    if Path(name).exists():
        return name
    try:
        HfApi().model_info(name, timeout=_TIMEOUT_SECONDS)
    except HFValidationError:
        raise ValueError(
            f"There is no folder {name}. Give an existing folder, or a Hub id such as user/name."
        ) from None
    except RepositoryNotFoundError:
        raise ValueError(
            f"There is neither a folder {name} nor a model of this name on the Hub. Check the spelling; for a private "
            "model, log in with `hf auth login`."
        ) from None
    except HfHubHTTPError:
        # The Hub can be reached. What it refuses here, such as a mirror without this service, need not fail when loading.
        return name
    except Exception as error:
        # Whatever the reason, the Hub cannot be asked: offline mode, no network, no proxy, a wrong certificate.
        return _cached(name, "HF_HUB_OFFLINE is set" if is_offline_mode() else " ".join(str(error).split()))
    return name


def _cached(name: str, reason: str) -> str:
    try:
        # A cache from `from_pretrained` has only some of the repository's files, but the configuration for certain.
        return snapshot_download(name, local_files_only=True, allow_patterns="*config.json")
    except LocalEntryNotFoundError:
        raise ValueError(
            f"There is no folder {name}, the Hub cannot be reached ({reason}), and the model is "
            "not in its local cache. Give an existing folder, or connect to the network."
        ) from None
