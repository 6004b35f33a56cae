"""Generates short answers to questions about images, in batches."""

from collections.abc import Sequence

import torch
from PIL import Image
from tqdm.auto import tqdm

from mm1_hf.evaluation.modes import evaluation_mode
from mm1_hf.model.modeling_mm1 import MM1ForConditionalGeneration
from mm1_hf.model.processing_mm1 import MM1Processor


def question_messages(question: str, answer: str | None = None) -> list[dict]:
    """
    Writes a question about one image as a chat.

    Args:
        question: the question.
        answer: the answer, for training; if `None`, the chat ends with the question.

    Example:

    ```python
    >>> from mm1_hf.evaluation.answering import question_messages

    >>> question_messages("What is it?", "A cat.")[-1]
    {'role': 'assistant', 'content': 'A cat.'}

    ```
    """
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    if answer is not None:
        messages.append({"role": "assistant", "content": answer})
    return messages


@torch.no_grad()
def answer(
    model: MM1ForConditionalGeneration,
    processor: MM1Processor,
    pairs: Sequence[tuple[Image.Image, str]],
    *,
    max_new_tokens: int = 8,
    batch_size: int = 64,
    description: str | None = None,
) -> list[str]:
    """
    Answers questions about images by greedy decoding.

    Args:
        model: the model; it answers in evaluation mode, and is left in the mode it was in.
        processor: the model's processor.
        pairs: pairs of an image and a question about it.
        max_new_tokens: maximum length of an answer in tokens.
        batch_size: number of questions per batch.
        description: label of the progress bar; if `None`, no bar is shown.

    Returns:
        The answers in the order of the questions, without special tokens.
    """
    answers = []
    bar = tqdm(total=len(pairs), desc=description, unit="question", disable=description is None)
    with evaluation_mode(model), bar:
        for start in range(0, len(pairs), batch_size):
            chunk = pairs[start : start + batch_size]
            inputs = processor.apply_chat_template(
                [question_messages(question) for _, question in chunk],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                processor_kwargs={"images": [[image] for image, _ in chunk], "padding": True},
            ).to(model.device, model.dtype)
            tokens = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
            texts = processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            answers.extend(text.strip() for text in texts)
            bar.update(len(chunk))
    return answers
