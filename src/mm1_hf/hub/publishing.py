"""Publishing a saved model or adapter: checked before anything is uploaded, then one commit."""

from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, logging

from mm1_hf.hub.card import CardDetails, model_card
from mm1_hf.hub.quantized_variant import quantize as save_quantized
from mm1_hf.hub.repository import CARD_NAME, read_repository


logger = logging.get_logger(__name__)

# In cards that transformers and PEFT write by themselves: forms, which nobody has filled in.
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
    Publishes a folder that holds an MM1 and its processor, or an adapter, as a repository that loads by itself: weights,
    settings, chat template, the code that travels with it, and a card. What a training leaves in the folder stays there.

    Everything appears in one commit or not at all. Large files go first; a push that broke off and is repeated does not
    send again those that arrived. A repository that has had a commit meanwhile is left as it is, and weights of an earlier
    commit that are no longer part of the model go.

    Args:
        folder: of the model or adapter. Its `README.md` is taken as the card, unless it is a form that a library left.
        repo_id: such as `"user/name"`; created if it does not exist.
        details: what the card says beside what the model itself tells.
        quantize: publish a quantised variant instead, by a scheme of [`mm1_hf.hub.quantized_variant`].
        private: whether a new repository is; unset, as the account's own setting has it.

    Returns:
        The commit.

    Raises:
        ValueError: the folder's files are incomplete, do not fit together or ask for code of others, or the folder brings a
            card and `details` are given too.
        OSError: the Hub cannot be reached or refuses; its answer is in the message.
    """
    if quantize is not None:
        with TemporaryDirectory() as variant:
            save_quantized(folder, variant, quantize)
            return push(variant, repo_id, details=details, private=private)
    repository = read_repository(folder)
    own_card = repository.folder / CARD_NAME
    card = own_card.read_text(encoding="utf-8") if own_card.is_file() else _UNFILLED
    if _UNFILLED in card:
        card = str(model_card(repository, repo_id, details or CardDetails()))
    elif details is not None:
        raise ValueError(f"{own_card} is the card already. Remove it, or give no details for one.")

    if repository.left_out:
        logger.warning(f"Not published: {', '.join(repository.left_out)}.")
    api = HfApi()
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    # Not upload_folder, which may make several commits.
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
    message = "Upload adapter" if repository.adapter else "Upload model"
    try:
        return api.create_commit(repo_id, operations, commit_message=message, parent_commit=before.sha)
    except RuntimeError as error:
        # So huggingface_hub calls an upload that failed.
        raise OSError(f"{error}: {error.__cause__}. What arrived is not sent again by the next push.") from error
