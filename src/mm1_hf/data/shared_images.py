"""
Several examples that share their images: the exchanges of a conversation about an image, each trained on by itself. In a
packed row the images are there once, followed by a branch for each example (see [`mm1_hf.model.segments`]). Loss and
gradients are those of one row per example, with its own copy of the images.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mm1_hf.data.chats import Chat
from mm1_hf.data.documents import Document
from mm1_hf.data.messages import Message


@dataclass(frozen=True)
class SharedImages(Document):
    """
    Several documents that have the same images, in the same places of their beginnings. Each becomes an example of its
    own, which does not see the others.

    Args:
        documents: the documents, at least one. The kind, the parts and the name of this document are those of the first.
    """

    documents: tuple[Document, ...] = ()


def take_apart(document: Document) -> Document:
    """
    Takes a conversation apart into its exchanges, each a question with its answer, as in data sets that list independent
    questions about an image as one conversation (The Cauldron, FineVision, LLaVA's mixtures of VQA data). Every exchange
    has the conversation's system message, and the conversation's images in front of its question; as a document of
    pre-training, which knows no turns, it begins with the images.

    Some documents stay whole, because their parts do not stand alone: those that are not conversations, conversations with
    an image after the first question, with tools, or with turns that are a prompt, and those of a single exchange.

    Args:
        document: any document.

    Example:

    ```python
    >>> from mm1_hf.data.layouts import LAYOUTS
    >>> from mm1_hf.data.shared_images import take_apart

    >>> turns = [{"role": "user", "content": "A?"}, {"role": "assistant", "content": "a"}] * 3
    >>> len(take_apart(LAYOUTS["chat"]({"messages": turns}, "a record")).documents)
    3

    ```
    """
    if not isinstance(document, Chat) or document.tools or document.given_turns:
        return document
    roles = [message["role"] for message in document.messages]
    system = document.messages[: roles.index("user")] if "user" in roles else document.messages
    turns = document.messages[len(system) :]
    asked = [index for index, message in enumerate(turns) if message["role"] == "user"]
    in_pairs = [message["role"] for message in turns] == ["user", "assistant"] * len(asked)
    later_images = any(_images(message) for message in turns[1:])
    if len(asked) < 2 or not in_pairs or document.said or later_images or any(map(_images, system)):
        return document
    shared = _images(turns[0])
    chats = []
    for number, start in enumerate(asked, start=1):
        question, answer = turns[start : start + 2]
        texts = [part for part in question["content"] if part["type"] != "image"]
        messages = (*system, {**question, "content": [*shared, *texts]}, answer)
        said = [part["text"] for message in messages for part in message["content"] if part["type"] == "text"]
        name = f"{document.name}, exchange {number}"
        chats.append(replace(document, parts=(*document.images, *said), messages=messages, name=name))
    return SharedImages(document.kind, document.parts, document.name, tuple(chats))


def _images(message: Message) -> list[dict]:
    return [part for part in message["content"] if part["type"] == "image"]


def shared_length(input_ids: Sequence[np.ndarray], learned: Sequence[np.ndarray]) -> int:
    """
    The number of tokens with which all of several examples begin, and of which none is a target. It leaves at least one
    token of every example.

    Args:
        input_ids: `(length,)` of each example.
        learned: `(length,)` of each example, whether each token is a target. Every example has one.
    """
    longest = min(int(targets.argmax()) for targets in learned)
    beginnings = np.stack([ids[:longest] for ids in input_ids])
    different = (beginnings != beginnings[0]).any(axis=0)
    return int(different.argmax()) if different.any() else longest


def fill(lengths: Sequence[int], room: int) -> list[list[int]]:
    """
    Divides items, in their order, into as few groups as the room of a group allows.

    Args:
        lengths: length of each item, at most `room`.
        room: largest sum of the lengths in a group.

    Returns:
        The indices of the items in each group.

    Example:

    ```python
    >>> from mm1_hf.data.shared_images import fill

    >>> fill([3, 4, 5], room=8)
    [[0, 1], [2]]

    ```
    """
    groups: list[list[int]] = []
    free = 0
    for index, length in enumerate(lengths):
        if length > free:
            groups.append([])
            free = room
        groups[-1].append(index)
        free -= length
    return groups
