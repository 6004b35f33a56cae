"""`mm1 push`."""

from mm1_hf.hub.card import load_details
from mm1_hf.hub.publishing import push as publish


def push(folder: str, repo_id: str, card: str | None, quantize: str | None, private: bool) -> None:
    """Publishes a folder and prints where it is."""
    details = None if card is None else load_details(card)
    print(publish(folder, repo_id, details=details, quantize=quantize, private=private or None).commit_url)
