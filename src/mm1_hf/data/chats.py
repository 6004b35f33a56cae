"""
Reads conversations in the forms in which data sets hold them: their messages, their images, and which of their turns are
trained on.
"""

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from mm1_hf.data.documents import Document, Unusable
from mm1_hf.data.media import given_image, is_empty, of_json, read_text, require_read
from mm1_hf.data.messages import Message, image_columns, place_images, read_messages, without_none
from mm1_hf.data.raw_records import WRONG_LAYOUT, Record
from mm1_hf.data.region_marks import with_regions_as_text
from mm1_hf.data.wall import require_unicode


UNRENDERED = "not rendered by the chat template"
# A template that writes the names of functions does not yet write those of speakers.
_ASKED = {"name": r"\b(?!\w*(?:function|tool|call|param|arg|fn|func))\w+(?:\.name\b|\[.name.\]|\.get\(.name)"}


@dataclass(frozen=True)
class Chat(Document):
    """
    A conversation. As a document, it consists of the texts and images of all turns in reading order, with its tools and
    their calls as JSON.

    Args:
        messages:
            the turns in the form that chat templates take, with a list of parts as each content. Image parts do not
            hold their images; those are in `parts`.
        given_turns: number of assistant turns that belong to the prompt. They are the first ones, and not trained on.
        tools: the tools that the chat template presents to the assistant, as JSON schemas.
    """

    messages: tuple[Message, ...] = ()
    given_turns: int = 0
    tools: tuple[Any, ...] = ()

    @property
    def said(self) -> list[str]:
        """What the conversation says beside the texts and images of its turns, for example `["tool_calls"]`."""
        return _said(self.messages, self.tools)


@dataclass(frozen=True)
class Conversation:
    """
    A conversation as a record holds it.

    Args:
        form: name of its form, a key of [`FORMS`].
        messages: the turns, as [`mm1_hf.data.messages.read_messages`] returns them, with an image in every image part.
        given_turns: number of assistant turns that belong to the prompt. They are the first ones, and not trained on.
        tools: the tools that the chat template presents to the assistant, as JSON schemas.
    """

    form: str
    messages: list[Message]
    given_turns: int = 0
    tools: list[Any] = field(default_factory=list)


def require_generation_marks(chat_template: str | Mapping[str, str] | None) -> None:
    """
    Checks that a chat template marks what the assistant writes.

    Args:
        chat_template: the chat template of a processor.

    Raises:
        ValueError: the template has no generation marks.
    """
    template = _default(chat_template)
    if template is None or not re.search(r"\{%-?\s*generation\s*-?%\}", template):
        raise ValueError(
            "Only what the assistant writes is trained on, but this processor's chat template has no {% generation %} "
            "marks to find it. Put {% generation %} and {% endgeneration %} around the assistant's text and its end "
            "mark, as in mm1_hf.model.processing_mm1.CHAT_TEMPLATE."
        )


def require_rendered(
    chat_template: str | Mapping[str, str] | None, messages: Collection[Message], tools: Collection[Any], name: str
) -> None:
    """
    Checks that a chat template writes everything that a conversation says: calls of tools, names or reasoning would
    otherwise vanish from it.

    Args:
        chat_template: the chat template of a processor.
        messages: the turns.
        tools: the tools.
        name: name of the conversation, for error messages.

    Raises:
        Unusable: the template does not mention a key of a message, or the tools.
    """
    template = _default(chat_template) or ""
    if lost := [key for key in _said(messages, tools) if not re.search(_ASKED.get(key, rf"\b{key}\b"), template)]:
        raise Unusable(
            UNRENDERED,
            f"{', '.join(lost)} of {name}. Use a chat template that writes this, or remove it from the data",
        )


def _said(messages: Collection[Message], tools: Collection[Any]) -> list[str]:
    keys = {key for message in messages for key in message} - {"role", "content"}
    return sorted(keys | ({"tools"} if tools else set()))


def _default(chat_template: str | Mapping[str, str] | None) -> str | None:
    return chat_template.get("default") if isinstance(chat_template, Mapping) else chat_template


def read_conversation(example: Record, name: str, forms: Collection[str] | None = None) -> Conversation | None:
    """
    Reads the conversation of an example, with its images in their places. See [`FORMS`] for the forms.

    Args:
        example: the example. Its images are in its columns `images` or `image`, or in the parts of its messages.
        name: name of the example, for error messages.
        forms: names of the forms to look for. Unset, these are all forms except `"preference"`, of which one has to know
            that only the chosen answer is trained on.

    Returns:
        The conversation, or `None` if the example has the columns of no form.

    Raises:
        Unusable: the example has several conversations, its conversation cannot be read, or it holds images, videos or
            sounds that have no place in it.
    """
    sought = [form for form in FORMS if (form in forms if forms is not None else form != _PREFERENCE)]
    found = [form for form in sought if FORMS[form].holds(example)]
    # Others often stand beside whole conversations, as the data from which these were made.
    found = [form for form in found if FORMS[form].whole] or found
    if not found:
        if forms is None and FORMS[_PREFERENCE].holds(example):
            raise _pair_of_preferences(name)
        return None
    if len(found) > 1:
        raise Unusable(WRONG_LAYOUT, f"{name}: the record holds several conversations: {' and '.join(found)}")
    (form,) = found
    if any(example.get(column) is False for column in ("label", "kto_tag")):
        raise Unusable(WRONG_LAYOUT, f"{name}: its label says that this answer was not wanted")
    example = with_regions_as_text(example, name)
    messages, given_turns = FORMS[form].read(example, name)
    if forms is None and messages[-1]["role"] == "user" and FORMS[_PREFERENCE].holds(example):
        raise _pair_of_preferences(name)
    messages = _with_system(messages, example.get("system"), name)
    given_turns = max(given_turns, _without_weights(messages, name))
    tools = _tools(example, name)
    messages = place_images(messages, image_columns(example, name), name)
    images = 0
    for message in messages:
        for part in message["content"]:
            if part["type"] == "image":
                part["image"] = given_image(part["image"], example, name)
                images += 1
    require_read(example, {*_COLUMNS, *FORMS[form].columns}, images, name)
    return Conversation(form, messages, given_turns, tools)


def _pair_of_preferences(name: str) -> Unusable:
    return Unusable(
        WRONG_LAYOUT,
        f"{name}: the record is a pair of preferences (chosen, rejected). To train on what was chosen, choose the layout "
        "'preference'",
    )


def _with_system(messages: list[Message], system: Any, name: str) -> list[Message]:
    if is_empty(system):
        return messages
    if messages[0]["role"] == "system":
        raise Unusable(WRONG_LAYOUT, f"{name}: there are two system prompts, in the column system and in the messages")
    return [{"role": "system", "content": [{"type": "text", "text": read_text(system, name)}]}, *messages]


def _without_weights(messages: list[Message], name: str) -> int:
    """Removes OpenAI's weights, and returns the number of assistant turns at the start whose weight is 0."""
    weights = [message.pop("weight", 1) for message in messages]
    weights = [weight for weight, message in zip(weights, messages, strict=True) if message["role"] == "assistant"]
    first = next((index for index, weight in enumerate(weights) if weight != 0), len(weights))
    if any(weight != 1 for weight in weights[first:]):
        raise Unusable(
            WRONG_LAYOUT,
            f"{name}: the weights of its assistant turns are {weights!r:.100}. Only first turns can be left out of the "
            "training, by the weight 0; all others have the weight 1",
        )
    return first


def _tools(example: Record, name: str) -> list[Any]:
    for column in ("functions", "chat_template_kwargs"):
        if not is_empty(example.get(column)):
            raise Unusable(UNRENDERED, f"the column {column} of {name}. Remove it, or give tools in the column tools")
    tools = example.get("tools")
    tools = of_json(tools, f"{name}: tools") if isinstance(tools, str) and tools.strip() else tools
    if is_empty(tools):
        return []
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise Unusable(WRONG_LAYOUT, f"{name}: tools is {tools!r:.100}, not a list of functions' schemas")
    require_unicode(json.dumps(tools, ensure_ascii=False, default=str), name)
    return without_none(tools)


def _of_messages(example: Record, name: str) -> tuple[list[Message], int]:
    return read_messages(example["messages"], name), 0


def _of_prompt(example: Record, name: str) -> tuple[list[Message], int]:
    prompt, completion = (_chat(example, column, name) for column in ("prompt", "completion"))
    return prompt + completion, _assistant_turns(prompt)


def _chat(example: Record, column: str, name: str) -> list[Message]:
    value = example[column]
    if not isinstance(value, list | tuple) and not (isinstance(value, str) and value.lstrip().startswith("[{")):
        raise Unusable(
            WRONG_LAYOUT, f"{name}: prompt and completion must be chats, that is, lists of messages, not {value!r:.60}"
        )
    return read_messages(value, name)


def _assistant_turns(messages: list[Message]) -> int:
    return sum(message["role"] == "assistant" for message in messages)


def _of_conversations(example: Record, name: str) -> tuple[list[Message], int]:
    columns = [column for column in ("conversations", "conversation") if example.get(column) is not None]
    if len(columns) > 1:
        raise Unusable(WRONG_LAYOUT, f"{name}: the record holds several conversations: {' and '.join(columns)}")
    return read_messages(example[columns[0]], name), 0


def _of_texts(example: Record, name: str) -> tuple[list[Message], int]:
    messages = []
    for turn in example["texts"]:
        if not isinstance(turn, Mapping) or turn.get("user") is None or turn.get("assistant") is None:
            raise Unusable(
                WRONG_LAYOUT, f"{name}: an entry of texts is {turn!r:.100}; give it a user and an assistant"
            )
        require_read(turn, ("user", "assistant"), 0, f"{name}: an entry of texts")
        messages += _exchange(turn["user"], turn["assistant"], name)
    return messages, 0


def _of_questions(example: Record, name: str) -> tuple[list[Message], int]:
    messages = []
    for turn in _question_rows(example["questions"]):
        require_read(turn, ("question", "answer"), 0, f"{name}: an entry of questions")
        messages += _exchange(turn["question"], turn["answer"], name)
    return messages, 0


def _question_rows(value: Any) -> list[Any]:
    """The questions of a record with their answers, also as two lists of one length; none if they have another form."""
    if isinstance(value, Mapping) and value and all(isinstance(column, list) for column in value.values()):
        same_length = len({len(column) for column in value.values()}) == 1
        columns = zip(*value.values(), strict=True) if same_length else ()
        value = [dict(zip(value, row, strict=True)) for row in columns]
    rows = value if isinstance(value, list) else []
    asked = all(isinstance(row, Mapping) and {"question", "answer"} <= row.keys() for row in rows)
    return rows if asked else []


def _exchange(question: Any, answer: Any, name: str) -> list[Message]:
    turns = [{"role": "user", "content": read_text(question, name)}]
    return read_messages([*turns, {"role": "assistant", "content": read_text(answer, name)}], name)


def _history(example: Record, name: str) -> list[Message]:
    messages = []
    history = [] if is_empty(example.get("history")) else example["history"]
    if not isinstance(history, list | tuple):
        raise Unusable(WRONG_LAYOUT, f"{name}: history is {history!r:.100}, not a list of questions with answers")
    for turn in history:
        if not isinstance(turn, list | tuple) or len(turn) != 2:
            raise Unusable(WRONG_LAYOUT, f"{name}: an entry of history is {turn!r:.100}, not a question and an answer")
        messages += _exchange(*turn, name)
    return messages


def _of_query(example: Record, name: str) -> tuple[list[Message], int]:
    return [*_history(example, name), *_exchange(example["query"], example["response"], name)], 0


def _of_instruction(example: Record, name: str) -> tuple[list[Message], int]:
    question = read_text(example["instruction"], name)
    if not is_empty(example.get("input")):
        question = f"{question}\n{read_text(example['input'], name)}"
    return [*_history(example, name), *_exchange(question, example["output"], name)], 0


def _of_question(example: Record, name: str) -> tuple[list[Message], int]:
    choices = [column for column in ("choices", "options") if not is_empty(example.get(column))]
    if choices:
        raise Unusable(
            WRONG_LAYOUT,
            f"{name}: the column {choices[0]} has no place in a question and its answer. Write it into the question",
        )
    answer = example["answer"]
    if isinstance(answer, list) and len(set(map(str, answer))) == 1:
        answer = answer[0]
    if not isinstance(answer, str):
        raise Unusable(WRONG_LAYOUT, f"{name}: answer is {answer!r:.100}, not one text. Choose what is to be learned")
    return _exchange(example["question"], answer, name), 0


def _of_preference(example: Record, name: str) -> tuple[list[Message], int]:
    if example.get("chosen") is None:
        # ms-swift: the whole conversation, and what was rejected in place of its last turn.
        messages = read_messages(example["messages"], name)
        return messages, max(_assistant_turns(messages) - 1, 0)
    chosen, rejected = (
        _preferred(example[column], f"{name}: {column}", "assistant") for column in ("chosen", "rejected")
    )
    # LLaMA-Factory has the turns before two answers of one turn each in the columns of a conversation.
    columns = _PROMPTS if isinstance(example["chosen"], Mapping) else _PROMPTS[:1]
    column = next((column for column in columns if not is_empty(example.get(column))), None)
    if column is None:
        same = [first == second for first, second in zip(chosen, rejected, strict=False)]
        prompt = chosen[: same.index(False)] if False in same else []
        if not prompt:
            raise Unusable(WRONG_LAYOUT, f"{name}: there is no prompt, nor turns with which both answers begin")
        chosen = chosen[len(prompt) :]
    else:
        prompt = _preferred(example[column], f"{name}: {column}", "user")
        if chosen[: len(prompt)] == prompt:
            chosen = chosen[len(prompt) :]
    return prompt + chosen, _assistant_turns(prompt)


def _preferred(value: Any, name: str, role: str) -> list[Message]:
    if isinstance(value, str) and not value.lstrip().startswith("[{"):
        value = [{"role": role, "content": value}]
    return read_messages(value, name)


@dataclass(frozen=True)
class Form:
    """
    One way in which a record holds a conversation.

    Args:
        columns: the columns that belong to the form. A record has this form if the first ones are there.
        read: returns the turns of an example, and the number of assistant turns in the prompt.
        needed: number of columns that a record of this form must have.
        whole: whether the columns hold all turns. Questions and answers in columns of their own are not read if whole
            conversations stand beside them.
    """

    columns: tuple[str, ...]
    read: Callable[[Record, str], tuple[list[Message], int]]
    needed: int
    whole: bool = False

    def holds(self, example: Record) -> bool:
        """
        Whether an example has this form.

        Args:
            example: the example.
        """
        if self.columns[0] == "conversations":
            return any(example.get(column) is not None for column in self.columns)
        if self.columns[0] == "texts":
            texts = example.get("texts")
            return isinstance(texts, list) and any(isinstance(turn, Mapping) for turn in texts)
        if self.columns[0] == "questions":
            return bool(_question_rows(example.get("questions")))
        if self.columns[0] == "chosen" and example.get("chosen") is None:
            rejected = any(example.get(column) is not None for column in ("rejected_response", "rejected_messages"))
            return rejected and example.get("messages") is not None
        return all(example.get(column) is not None for column in self.columns[: self.needed])


_PREFERENCE = "preference"
# The columns that hold what comes before the two answers of a pair of preferences.
_PROMPTS = ("prompt", "conversations", "messages")
# Columns that every form may have.
_COLUMNS = ("images", "image", "system", "tools")
# The forms of conversations, each under its name in error messages and in docs/data-formats.md.
FORMS: dict[str, Form] = {
    "messages": Form(("messages",), _of_messages, 1, whole=True),
    "prompt and completion": Form(("prompt", "completion", "label"), _of_prompt, 2, whole=True),
    "conversations": Form(("conversations", "conversation"), _of_conversations, 1, whole=True),
    "texts": Form(("texts",), _of_texts, 1, whole=True),
    "questions": Form(("questions",), _of_questions, 1, whole=True),
    "query and response": Form(("query", "response", "history"), _of_query, 2),
    "instruction and output": Form(("instruction", "output", "input", "history"), _of_instruction, 2),
    "question and answer": Form(("question", "answer"), _of_question, 2),
    _PREFERENCE: Form(("chosen", "rejected", "prompt"), _of_preference, 2),
}
