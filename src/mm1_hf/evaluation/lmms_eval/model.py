"""The model that `python -m lmms_eval --model mm1_hf` evaluates: [`LocalModel`] behind lmms-eval's interface."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from typing import Any

from accelerate import Accelerator
from tqdm import tqdm

from mm1_hf.evaluation.lmms_eval.bases import GenerationResult, ModelBase
from mm1_hf.evaluation.lmms_eval.messages import completion, generation_settings, turns_of
from mm1_hf.evaluation.models import load_model
from mm1_hf.evaluation.requests import Answer, Request
from mm1_hf.reporting.printable import printable
from mm1_hf.training.machine import this_machine


logger = logging.getLogger(__name__)


class MM1Chat(ModelBase):
    """
    An MM1, or any other image-text-to-text model of transformers, that is asked through its chat template. Its keyword
    arguments are those of `--model_args`.

    A request that cannot be answered, for example because an image is broken or the prompt is longer than the context,
    counts as an empty answer, and the reasons are logged.

    Args:
        pretrained: folder or Hub id of the model.
        revision: branch, tag or commit of the Hub.
        dtype: dtype of the weights; unset, what this machine computes fastest in.
        device: where to run it; unset, the accelerator if there is one.
        batch_size: number of prompts per batch; `"auto"` for the largest that fits.
        trust_remote_code: whether code of the model's repository may be run.

    Raises:
        ValueError: the model is not one for images and text.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        revision: str | None = None,
        dtype: str | None = None,
        device: str | None = None,
        batch_size: int | str = 1,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__()
        # Before the model is loaded, so that each of several processes gets a device of its own.
        self.accelerator = Accelerator(cpu=this_machine().device.type == "cpu")
        self.device = self.accelerator.device
        self.local = load_model(
            str(pretrained),
            revision=revision,
            dtype=dtype,
            device=device,
            trust_remote_code=trust_remote_code,
            batch_size=None if str(batch_size).startswith("auto") else int(batch_size),
        )

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """
        Answers requests.

        Args:
            requests: lmms-eval's instances.

        Raises:
            ValueError: a task asks for sampling, or about a video or sound.
        """
        answers = self._answers([partial(self._request, each) for each in requests])
        return [answer.text for answer in answers]

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[list[str]]:
        """
        Asks in rounds, where the task writes the messages of each round from the answers of those before it.

        Args:
            requests: lmms-eval's instances.

        Returns:
            The answers of all rounds for each request.

        Raises:
            ValueError: a task asks for sampling, or about a video or sound.
        """
        size = 2 * self.local.batch_size
        chunks = [requests[start : start + size] for start in range(0, len(requests), size)]
        return [said for chunk in tqdm(chunks, disable=self.rank != 0) for said in self._rounds(chunk)]

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """
        Scores continuations of a text, which is not written as a chat.

        Args:
            requests: lmms-eval's instances.

        Returns:
            For each the summed log-likelihood with its sign changed, because lmms-eval takes the choice with the lowest
            value; and whether greedy decoding gives the continuation. Both are inside of a `GenerationResult`, because
            lmms-eval 0.7.3 makes a text of any bare pair, which no task can read.
        """
        groups = [list(same) for _, same in groupby(requests, lambda each: (each.args[0], each.args[3:]))]
        answers = self._answers([partial(self._continuations, same) for same in groups])
        scores: list[tuple[float, bool]] = []
        for same, answer in zip(groups, answers, strict=True):
            if answer.error is None:
                scores += [
                    (-value, greedy) for value, greedy in zip(answer.log_likelihoods, answer.greedy, strict=True)
                ]
            else:
                scores += [(float("inf"), False)] * len(same)
        return [GenerationResult(pair) for pair in scores]

    def _record(self, place: Sequence[Any]) -> Any:
        """The record of the data set that a request is about."""
        index, task, split = place
        return self.task_dict[task][split][index]

    def _request(self, instance: Any) -> Request:
        _, messages_of, settings, *place = instance.args
        return self._chat(messages_of(self._record(place)), settings)

    def _chat(self, messages: Any, settings: Any) -> Request:
        max_new_tokens, stop = generation_settings(settings)
        return Request(turns_of(messages), max_new_tokens, stop)

    def _rounds(self, requests: Sequence[Any]) -> list[list[str]]:
        said: list[list[str]] = [[] for _ in requests]
        # By request: its messages, and what its task wants to be told afterwards.
        asked = {index: (each.args[1](self._record(each.args[3:])), None) for index, each in enumerate(requests)}
        while asked:
            chats = [self._chat(messages, requests[index].args[2]) for index, (messages, _) in asked.items()]
            for index, answer in zip(asked, self._counted(self.local.answer(chats)), strict=True):
                said[index].append(answer.text)
            following = {index: self._next(requests[index], said[index], told) for index, (_, told) in asked.items()}
            asked = {index: messages for index, messages in following.items() if messages is not None}
        return said

    def _next(self, instance: Any, said: list[str], told: Any) -> tuple[Any, Any] | None:
        """The messages of the next round, and what the task wants to be told afterwards; None after the last round."""
        _, messages_of, _, *place = instance.args
        following = messages_of(
            self._record(place), round_idx=len(said), previous_output=list(said), previous_round_info=told
        )
        # Tasks that know no rounds write the same messages again.
        if not isinstance(following, tuple):
            return None
        messages, finished, _, told = following
        return None if finished else (messages, told)

    def _continuations(self, same: Sequence[Any]) -> Request:
        text, _, *where = same[0].args
        # Texts that are scored without their question have no record.
        images_of, *place = where or (None,)
        images = images_of(self._record(place)) if callable(images_of) else None
        targets = [each.args[1] for each in same]
        texts = tuple(target(self._record(place)) if callable(target) else target for target in targets)
        return Request(completion(text, images or ()), continuations=texts)

    def _answers(self, makers: Sequence[Callable[[], Request]]) -> list[Answer]:
        """The answers in order. Only the images of two batches are held at a time."""
        answers: list[Answer] = []
        with tqdm(total=len(makers), unit="request", disable=self.rank != 0) as bar:
            while len(answers) < len(makers):
                chunk = makers[len(answers) : len(answers) + 2 * self.local.batch_size]
                answers += self.local.answer([make() for make in chunk])
                bar.update(len(chunk))
        return self._counted(answers)

    def _counted(self, answers: list[Answer]) -> list[Answer]:
        reasons = [answer.error for answer in answers if answer.error is not None]
        if reasons:
            shown = printable(reasons[0])
            logger.warning("%d of %d requests have no answer, the first: %s", len(reasons), len(answers), shown)
        return answers


class MM1Text(MM1Chat):
    """
    The same model, asked by texts that it continues, as a pre-trained model is. lmms-eval takes it with `--force_simple`,
    and it is the one for tasks that compare log-likelihoods.
    """

    is_simple = True

    def _request(self, instance: Any) -> Request:
        text, settings, images_of, *place = instance.args
        max_new_tokens, stop = generation_settings(settings)
        images = images_of(self._record(place)) if callable(images_of) else None
        return Request(completion(text, images or ()), max_new_tokens, stop)

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[list[str]]:
        """
        Not for texts.

        Args:
            requests: lmms-eval's instances.

        Raises:
            ValueError: always.
        """
        raise ValueError("A task with several rounds needs a chat. Run it without --force_simple.")
