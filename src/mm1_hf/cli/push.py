"""`mm1 push`: a saved model or adapter onto the Hub."""

from dataclasses import replace

import mm1_hf  # noqa: F401 - registers MM1 with the Auto classes
from mm1_hf.evaluation.models.weights import require_measured
from mm1_hf.hub.card import CardDetails, load_details, load_results
from mm1_hf.hub.publishing import push


def run(folder: str, repo_id: str, card: str | None, quantize: str | None, eval: str | None, private: bool) -> None:
    """
    Publishes a folder and prints the URL of its commit.

    Raises:
        ValueError: the scores are not those of the weights that are published.
    """
    details = None if card is None else load_details(card)
    if eval is not None:
        if quantize is not None:
            raise ValueError(
                f"{eval} was measured before the weights are quantised (--quantize {quantize}), so its scores are not those "
                "of what is published. Leave one of the two out."
            )
        require_measured(eval, folder)
        details = details or CardDetails()
        details = replace(details, evaluation=(*details.evaluation, *load_results(eval)))
    print(push(folder, repo_id, details=details, quantize=quantize, private=private or None).commit_url)
