"""
The prompts: how a question, its images and its options are written for a model, as templates that have names.

What a paper or a harness states is written here as stated. What is marked "inferred" is our reading of a paper that
does not print its prompts.
"""

from dataclasses import dataclass
from string import Formatter


IMAGE = "<image>"


@dataclass(frozen=True)
class Template:
    """
    How a question is written for a model.

    The query may have the fields `{image}` (the images that have no place inside the question), `{question}`,
    `{options}` (one line for each option, `A. text`), and any field that the task keeps of a record. A line of the
    query whose fields are all empty is left out, such as the line of the options where a question has none.

    Args:
        query: the prompt of one question.
        answer:
            what follows the query in a demonstration, or as a continuation to be scored; its field is `{answer}`, and
            it may have those that the task keeps.
        separator: what stands between demonstrations, and before the query, in completion style.
        instruction: what stands before everything else, once.
        answer_after:
            the words in a generated text after which the answer begins, for chain-of-thought prompts. The last place
            of these words counts. A text without them is taken as a whole.

    Raises:
        ValueError: a field has no name or more than a name, the query has no field, or the answer lacks `{answer}`.

    Example:

    ```python
    >>> from mm1_hf.evaluation.templates import TEMPLATES

    >>> TEMPLATES["vqa"].query
    '{image} Question: {question} Short answer:'

    ```
    """

    query: str
    answer: str = " {answer}"
    separator: str = "\n"
    instruction: str = ""
    answer_after: str = ""

    def __post_init__(self) -> None:
        for name in ("query", "answer"):
            text = getattr(self, name)
            try:
                fields = fields_of(text)
            except ValueError as error:
                raise ValueError(f"The {name} of a template is {text!r}: {error}.") from error
            if any(not field.isidentifier() for field in fields) or not fields:
                raise ValueError(
                    f"The {name} of a template is {text!r}, with the fields {fields}; give at least one field, and only "
                    "names in braces, such as {question}. Double the braces that are meant as text: {{ and }}."
                )
        if "answer" not in fields_of(self.answer):
            raise ValueError(f"The answer of a template is {self.answer!r}; it needs the field {{answer}}.")


def fields_of(text: str) -> list[str]:
    """
    The names of the fields in a template's text, in order.

    Args:
        text: the text.
    """
    return [name + (f":{form}" if form else "") for _, name, form, _ in Formatter().parse(text) if name is not None]


_LETTER = "Answer with the option's letter from the given choices directly."
_SHORT = "Answer the question using a single word or phrase."

TEMPLATES: dict[str, Template] = {
    # MM1, section 4 (few-shot): inferred from the paper's words and from its predecessors.
    "caption": Template("{image} A photo of"),
    "vqa": Template("{image} Question: {question} Short answer:"),
    "vqa_options": Template("{image} Question: {question}\n{options}\nAnswer:"),
    "image_question": Template("{image} {question}"),
    # TextCore, as in lm-evaluation-harness.
    "continuation": Template("{question}", separator="\n\n"),
    "question_answer": Template("Question: {question}\nAnswer:", separator="\n\n"),
    "trivia": Template("Question: {question}?\nAnswer:", separator="\n\n"),
    "support_question": Template("{question}\nAnswer:", separator="\n\n"),
    # VL-ICL. Each of its tasks adds its instruction.
    "in_context": Template("{image}\n{question}\nAnswer:"),
    # Chats: LLaVA-1.5's requests.
    "chat": Template("{image}{question}", "{answer}"),
    "chat_short": Template(f"{{image}}{{question}}\n{_SHORT}", "{answer}"),
    "chat_unanswerable": Template(
        f"{{image}}{{question}}\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n{_SHORT}",
        "{answer}",
    ),
    "chat_letter": Template(f"{{image}}{{question}}\n{{options}}\n{_LETTER}", "{answer}"),
    "chat_letter_hint": Template(f"{{image}}{{hint}}{{question}}\n{{options}}\n{_LETTER}", "{answer}"),
    "chat_options_request": Template("{image}{question}\n{options}\n{request}", "{answer}"),
    "chat_caption": Template("{image}Provide a one-sentence caption for the provided image.", "{answer}"),
    "chat_caption_brief": Template("{image}Describe the image briefly.", "{answer}"),
    "chat_text": Template("{question}", "{answer}"),
    # Ferret's request for the place of what a phrase names.
    "chat_box": Template("{image}What is the location of {question} in the image?", "{answer}"),
    # Chain of thought; the words are ours, because MM1 does not print its own.
    "thought": Template(
        "{image} Question: {question}\n{options}\nLet's think step by step.",
        " {rationale} The answer is {answer}.",
        separator="\n\n",
        answer_after="The answer is",
    ),
    "chat_thought": Template(
        '{image}{question}\n{options}\nThink step by step. End with the words "The answer is" and the answer.',
        "{rationale} The answer is {answer}.",
        answer_after="The answer is",
    ),
}


def named(template: str | Template) -> Template:
    """
    The template of a name; a template is returned unchanged.

    Args:
        template: the name, or a template.

    Raises:
        ValueError: there is no template of this name.
    """
    if isinstance(template, Template):
        return template
    if template not in TEMPLATES:
        raise ValueError(
            f"There is no template {template!r}. Give one of {', '.join(TEMPLATES)}, or write the template out: a mapping "
            "with the entry query."
        )
    return TEMPLATES[template]
