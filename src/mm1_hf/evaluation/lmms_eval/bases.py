"""
lmms-eval's classes that those of this folder extend. Where lmms-eval is not installed, empty classes take their place, so
that its documentation and types can be read and checked there.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any


if not TYPE_CHECKING and find_spec("lmms_eval"):
    from lmms_eval.api.instance import GenerationResult, Instance
    from lmms_eval.api.model import lmms as ModelBase
    from lmms_eval.api.task import ConfigurableMessagesTask as TaskBase
else:

    @dataclass
    class GenerationResult:
        """
        What a model returns for a request.

        Args:
            text: what the task gets.
        """

        text: Any

    @dataclass
    class Instance:
        """
        A request.

        Args:
            request_type: what is asked of the model.
            arguments: what the model is given.
            idx: index of the request among those of its question.
            metadata: what lmms-eval notes of it.
            task_name: name of the task.
            doc_id: place of the question in its split.
        """

        request_type: str
        arguments: tuple[Any, ...]
        idx: int
        metadata: Any = None
        task_name: str | None = None
        doc_id: int | None = None

    class ModelBase:
        """
        A model of lmms-eval.

        `task_dict` holds the data of the tasks by task, split and index; `rank` is the index of the process.
        """

        task_dict: dict[str, Any]
        rank: int

    class TaskBase:
        """
        A task of lmms-eval that asks by chat messages.

        Args:
            config: the entries of its file.
        """

        config: Any

        def __init__(self, config: dict[str, Any]) -> None: ...
