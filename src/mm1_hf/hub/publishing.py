"""Publishes a saved model or adapter on the Hub: its files are checked before the upload, and arrive in one commit."""

from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.utils import get_session
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, logging

from mm1_hf.hub.card import CardDetails, model_card
from mm1_hf.hub.quantized_variant import quantize as save_quantized
from mm1_hf.hub.repository import CARD_NAME, is_hub_id, read_repository
from mm1_hf.reporting.printable import printable


logger = logging.get_logger(__name__)

# huggingface_hub 1.x speaks through httpx, 2.x through httpx2: the session is of the one that is in use.
_TRANSPORT_ERROR = import_module(type(get_session()).__module__.split(".")[0]).TransportError

# Placeholder in the cards that transformers and PEFT write: a card that still holds it has not been filled in.
_UNFILLED = "[More Information Needed]"


def push(
    folder: str | Path,
    repo_id: str,
    *,
    details: CardDetails | None = None,
    quantize: str | None = None,
    private: bool | None = None,
) -> CommitInfo:
    """
    Publishes a folder that holds an MM1 and its processor, or an adapter, as a repository on the Hub. A model's
    repository has all that is needed to load it, even without this package: weights, configuration, chat template, the
    code of the model, and a card. Other files that training has left in the folder are not published.

    Everything is published in one commit, or nothing is. Large files are uploaded first; if a push fails and is
    repeated, the files that have arrived are not uploaded again. If someone else commits to the repository during the
    push, the push fails and the repository stays unchanged. Files with weights from earlier commits that no longer
    belong to the model are deleted.

    Args:
        folder: folder of the model or adapter. Its `README.md` is used as the card, unless it is a template that a
            library has written and nobody has filled in.
        repo_id: Hub id of the repository, such as `"user/name"`. The repository is created if it does not exist.
        details: facts for the card that the model's files do not tell.
        quantize: scheme of [`mm1_hf.hub.quantized_variant`], to publish a quantised variant instead of the model
            itself.
        private: whether a new repository is private; unset, the default of the account.

    Returns:
        The commit.

    Raises:
        ValueError: `repo_id` is not a Hub id, files are missing, do not fit together or refer to foreign code, links lead
            out of the folder, or the folder has a card although `details` are given.
        OSError: the Hub cannot be reached or refuses the push; its answer is in the message.
    """
    if not is_hub_id(repo_id):
        raise ValueError(f"{repo_id!r:.100} is not the id of a repository on the Hub. Give one, such as user/name.")
    repository = read_repository(folder)
    if quantize is not None:
        with TemporaryDirectory() as variant:
            save_quantized(folder, variant, quantize)
            return push(variant, repo_id, details=details, private=private)
    own_card = repository.folder / CARD_NAME
    card = _read_card(own_card) if own_card.is_file() else _UNFILLED
    if _UNFILLED in card:
        card = str(model_card(repository, repo_id, details or CardDetails()))
    elif details is not None:
        raise ValueError(
            f"{own_card} is a finished card, but details for a new one are given. Remove the file, or give no details."
        )

    if repository.left_out:
        names = printable(", ".join(repository.left_out))
        logger.warning(f"These files in {repository.folder} are not published: {names}.")
    api = HfApi()
    message = "Upload adapter" if repository.adapter else "Upload model"
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        # The commit is made by hand, because upload_folder may make several commits.
        before = api.model_info(repo_id)
        stale = [
            each.rfilename
            for each in before.siblings or ()
            if "/" not in each.rfilename
            and (each.rfilename.endswith(".safetensors") or each.rfilename == SAFE_WEIGHTS_INDEX_NAME)
            and each.rfilename not in repository.files
        ]
        operations = [
            CommitOperationAdd(CARD_NAME, card.encode()),
            *(CommitOperationAdd(name, str(path)) for name, path in repository.files.items()),
            *(CommitOperationDelete(name) for name in stale),
        ]
        return api.create_commit(repo_id, operations, commit_message=message, parent_commit=before.sha)
    except _TRANSPORT_ERROR as error:
        raise OSError(
            f"{api.endpoint} cannot be reached: {str(error) or type(error).__name__}. Push again later."
        ) from error
    except RuntimeError as error:
        # huggingface_hub raises a RuntimeError if the upload of a file fails.
        raise OSError(
            f"{error}: {error.__cause__}. Push again: files that have arrived are not uploaded twice."
        ) from error


def _read_card(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}. Write it again, or remove it.") from error
