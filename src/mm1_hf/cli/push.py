"""`mm1 push`: a saved model or adapter onto the Hub."""

from mm1_hf.hub.card import load_details
from mm1_hf.hub.publishing import push


def run(folder: str, repo_id: str, card: str | None, quantize: str | None, private: bool) -> None:
    """Publishes a folder and prints the URL of its commit."""
    details = None if card is None else load_details(card)
    print(push(folder, repo_id, details=details, quantize=quantize, private=private or None).commit_url)
