"""`mm1 push`: a saved model or adapter onto the Hub."""

from dataclasses import replace

from mm1_hf.hub.card import CardDetails, load_details, load_results
from mm1_hf.hub.publishing import push


def run(folder: str, repo_id: str, card: str | None, quantize: str | None, eval: str | None, private: bool) -> None:
    """Publishes a folder and prints the URL of its commit."""
    details = None if card is None else load_details(card)
    if eval is not None:
        details = details or CardDetails()
        details = replace(details, evaluation=(*details.evaluation, *load_results(eval)))
    print(push(folder, repo_id, details=details, quantize=quantize, private=private or None).commit_url)
