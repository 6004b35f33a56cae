"""The tasks of this package for lmms-eval's simple models: few-shot by texts to continue, and by log-likelihoods."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from mm1_hf.data.documents import Unusable
from mm1_hf.evaluation.lmms_eval.bases import Instance
from mm1_hf.evaluation.lmms_eval.messages import rgb_image
from mm1_hf.evaluation.lmms_eval.task import CANNOT_ASK, FewShotTask
from mm1_hf.evaluation.requests import Answer, Request


class FewShotTextTask(FewShotTask):
    """
    A task of this package for models that continue a text: `--force_simple` with `mm1_hf`. The demonstrations stand before
    the question in one text, with `<image>` in the place of each image; prompts, demonstrations and scores are those of
    `mm1 eval --style completion`. Tasks that compare log-likelihoods are asked for those of each choice.

    It is made like a [`FewShotTask`].
    """

    style = "completion"

    def fewshot_context(self, doc: Mapping[str, Any], num_fewshot: int, *settings: Any, **more: Any) -> str:
        """
        The prompt as text.

        Args:
            doc: the question's record.
            num_fewshot: number of demonstrations.
            settings, more: of lmms-eval's own prompts, which these are not.
        """
        requests = self._asked(doc)
        return requests[0].text if requests else CANNOT_ASK

    def doc_to_visual(self, doc: Mapping[str, Any]) -> list[Image.Image]:
        """
        The images of the demonstrations and of the question, in reading order.

        Args:
            doc: the question's record.
        """
        requests = self._asked(doc)
        return [rgb_image(part) for part in requests[0].images] if requests else []

    def construct_requests(self, doc_id: int, ctx: str, **kwargs: Any) -> Any:
        """
        What lmms-eval asks of a model: one answer, or the log-likelihood of each continuation.

        Args:
            doc_id: place of the question in the split.
            ctx: the prompt.
            kwargs: further fields of the instances.
        """
        split = kwargs["metadata"]["split"]
        place = (self.doc_to_visual, doc_id, self.config.task, split)
        kwargs = {"task_name": self.config.task, "doc_id": doc_id, **kwargs}
        if self.mm1_task.kind != "likelihood":
            settings = copy.deepcopy(self.config.generation_kwargs)
            return Instance(request_type="generate_until", arguments=(ctx, settings, *place), idx=0, **kwargs)
        # A question that cannot be asked needs a request, too.
        asked = self._asked(self.dataset[split][doc_id]) or (Request((CANNOT_ASK,), continuations=(" -",)),)
        pairs = [(request.text, text) for request in asked for text in request.continuations]
        return [
            Instance(request_type="loglikelihood", arguments=(*pair, *place), idx=index, **kwargs)
            for index, pair in enumerate(pairs)
        ]

    def _ask(self, doc: Mapping[str, Any]) -> None:
        self._asked(doc)

    def _asked(self, doc: Mapping[str, Any]) -> tuple[Request, ...]:
        """The requests about a question; none if it cannot be asked."""
        sample = self.samples[doc["row"]]
        self._errors[doc["row"]] = sample.error
        if sample.error is None:
            requests = self._requests(sample)
            try:
                for part in requests[0].images:
                    part.load()
                return requests
            except Unusable as error:
                self._errors[doc["row"]] = str(error)
        return ()

    def _answers(self, results: Sequence[Any]) -> list[Answer]:
        if self.mm1_task.kind != "likelihood":
            return super()._answers(results)
        # As a loss, as lmms-eval's models give it; infinite where there is no answer.
        pairs = [each[0] if isinstance(each, list) else each for each in results]
        if any(value == float("inf") for value, _ in pairs):
            return [Answer(error="no answer")]
        return [
            Answer(log_likelihoods=tuple(-value for value, _ in pairs), greedy=tuple(bool(each) for _, each in pairs))
        ]
