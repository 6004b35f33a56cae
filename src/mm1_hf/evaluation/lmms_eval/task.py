"""The tasks of this package as tasks of lmms-eval, few-shot for all of its chat models."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from datasets import Dataset

from mm1_hf.evaluation import metrics
from mm1_hf.evaluation.demonstrations import Demonstrations
from mm1_hf.evaluation.lmms_eval.bases import TaskBase
from mm1_hf.evaluation.lmms_eval.messages import messages_of
from mm1_hf.evaluation.prompts import build_requests, prediction
from mm1_hf.evaluation.requests import Answer, Request
from mm1_hf.evaluation.samples import Sample, read_samples
from mm1_hf.evaluation.scoring import score
from mm1_hf.evaluation.tasks import Style, load_task


# Where local copies of the data lie: a folder with one folder for each task, as `mm1 eval --data` takes it.
DATA = "MM1_DATA"
CANNOT_ASK = "(This question cannot be asked. Answer with a dash.)"


class FewShotTask(TaskBase):
    """
    A task of this package that lmms-eval runs with any of its chat models. `--num_fewshot` demonstrations, with their
    images, stand before the question as turns of a user and of the assistant; the fourth number of `--seed` chooses
    them. Prompts, demonstrations and scores are those of `mm1 eval --style chat`.

    A question with an image that cannot be read counts as an empty answer. The results count such questions as `errors`,
    and those without a reference, which are not scored, as `unscored`.

    Args:
        config:
            the entries of its file. `dataset_path` is the name or path of the task of this package. `dataset_kwargs` may
            have `data`, the path of a local copy of the data.

    Raises:
        ValueError: there is no such task, its data are not there, or its answers are not texts that a metric scores.
    """

    style: Style = "chat"

    def __init__(self, config: dict[str, Any]) -> None:
        task = load_task(config["dataset_path"])
        if not task.metric or task.split in task.hidden:
            raise ValueError(
                f"The task {task.name} is scored by a judge, or has no references; lmms-eval cannot score it. Run it with "
                "mm1 eval."
            )
        if task.kind == "likelihood" and self.style == "chat":
            raise ValueError(
                f"The task {task.name} compares log-likelihoods, for which lmms-eval does not ask by chats. Take its task "
                f"mm1_text_{task.name} of TEXT_TASKS with --force_simple, or run it with mm1 eval."
            )
        self.mm1_task = task
        self._metric = metrics.load(task.metric)
        # By place in the data, why a question cannot be asked; None where it can.
        self._errors: dict[int, str | None] = {}
        self._demonstrations: Demonstrations | None = None
        self._seed: int | None = 0
        settings = {
            "output_type": "generate_until",
            "test_split": task.split,
            "generation_kwargs": {
                "max_new_tokens": task.max_new_tokens,
                "until": list(task.stop) if self.style == "completion" else [],
                "do_sample": False,
                "temperature": 0.0,
            },
        }
        super().__init__(config=settings | {name: value for name, value in config.items() if name != "class"})

    def download(self, dataset_kwargs: Mapping[str, Any] | None = None) -> None:
        """
        Opens the data. What lmms-eval sees of a question is its name and its place in the data.

        Args:
            dataset_kwargs: those of the task's file.
        """
        self._data = (dataset_kwargs or {}).get("data", os.environ.get(DATA))
        self.samples = read_samples(self.mm1_task, data=self._data)
        records = Dataset.from_dict({"id": self.samples.ids, "row": list(range(len(self.samples)))})
        self.dataset = self.dataset_no_image = {self.mm1_task.split: records}

    def set_fewshot_seed(self, seed: int | None = None) -> None:
        """
        Sets what chooses the demonstrations.

        Args:
            seed: the seed.
        """
        self._seed, self._demonstrations = seed, None

    def doc_to_text(self, doc: Mapping[str, Any]) -> str:
        """
        Nothing: chat models are asked by [`FewShotTask.doc_to_messages`].

        Args:
            doc: the question's record.
        """
        return ""

    def doc_to_target(self, doc: Mapping[str, Any]) -> str:
        """
        The reference, for the log.

        Args:
            doc: the question's record.
        """
        return str(self.samples[doc["row"]].references)

    def fewshot_context(self, doc: Mapping[str, Any], num_fewshot: int, *settings: Any, **more: Any) -> str:
        """
        What names the prompt in logs and caches.

        Args:
            doc: the question's record.
            num_fewshot: number of demonstrations.
            settings, more: prompts of lmms-eval for models that are not asked by chats.
        """
        return f"{self.mm1_task.name}, {doc['id']}, {num_fewshot} shots, seed {self._seed}"

    def doc_to_messages(self, doc: Mapping[str, Any], **rounds: Any) -> list[dict[str, Any]]:
        """
        The chat: a user's and an assistant's turn for each demonstration, and the question.

        Args:
            doc: the question's record.
            rounds: for tasks of several rounds, which these are not.

        Raises:
            ValueError: there are too few demonstrations.
        """
        sample = self.samples[doc["row"]]
        self._errors[doc["row"]] = sample.error
        if sample.error is None:
            (request,) = self._requests(sample)
            try:
                return messages_of(request)
            except ValueError as error:
                self._errors[doc["row"]] = str(error)
        return [{"role": "user", "content": [{"type": "text", "text": CANNOT_ASK}]}]

    def process_results(self, doc: Mapping[str, Any], results: Sequence[Any], **more: Any) -> dict[str, Any]:
        """
        What is known of an answer; it is scored together with the others.

        Args:
            doc: the question's record.
            results: the answer.
            more: the records of all questions, where the task asks for them.
        """
        if doc["row"] not in self._errors:
            # The answer is from lmms-eval's cache.
            self._ask(doc)
        sample, error = self.samples[doc["row"]], self._errors[doc["row"]]
        answers = [Answer(error=error)] if error is not None else self._answers(results)
        predicted, columns = prediction(self.mm1_task, sample, answers, style=self.style)
        item = {"prediction": predicted, "reference": sample.references, "columns": columns}
        if sample.scored and hasattr(self._metric, "score"):
            # From it lmms-eval computes the standard error.
            (scores,) = score(self.mm1_task, [predicted], [sample.references], [columns]).samples
            item["score"] = scores[self._metric.HEADLINE]
        counts = {"errors": float(error is not None), "unscored": float(not sample.scored)}
        return {self._metric.HEADLINE: item, **counts}

    def aggregation(self) -> dict[str, Callable[[list[Any]], float]]:
        """How the answers to all questions become each of the results."""
        return {self._metric.HEADLINE: self._score, "errors": sum, "unscored": sum}

    def higher_is_better(self) -> dict[str, bool]:
        """Of each of the results, whether a higher one is better."""
        return {self._metric.HEADLINE: True, "errors": False, "unscored": False}

    def _ask(self, doc: Mapping[str, Any]) -> None:
        """Finds out whether a question can be asked."""
        self.doc_to_messages(doc)

    def _answers(self, results: Sequence[Any]) -> list[Answer]:
        return [Answer(results[0] if isinstance(results[0], str) else results[0][0])]

    def _requests(self, sample: Sample) -> tuple[Request, ...]:
        return build_requests(self.mm1_task, sample, self._draw(sample), style=self.style)

    def _draw(self, sample: Sample) -> list[Sample]:
        shots = self.config.num_fewshot or 0
        if shots and self._demonstrations is None:
            pool = read_samples(self.mm1_task, data=self._data, shots=True)
            self._demonstrations = Demonstrations(pool, seed=self._seed)  # ty: ignore[invalid-argument-type]
        return self._demonstrations.draw(sample, shots) if self._demonstrations else []

    def _score(self, items: Sequence[Mapping[str, Any]]) -> float:
        scored = [item for item in items if item["reference"] is not None]
        if not scored:
            return math.nan
        columns = [item["columns"] for item in scored]
        predictions, references = ([item[name] for item in scored] for name in ("prediction", "reference"))
        return score(self.mm1_task, predictions, references, columns).total[self._metric.HEADLINE]
