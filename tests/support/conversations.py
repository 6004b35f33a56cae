"""Conversations about plain colours, in TRL's columns."""

import datasets
from mixtures import png


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def record(index: int, images: int) -> dict:
    """A question and an answer of lengths of their own, which begins with the record's number."""
    return {
        "messages": [user("q" * (index % 5)), assistant(f"{index:03d}" + "a" * (index % 11))],
        "images": [{"bytes": png(index), "path": None}] * images,
    }


def conversations(number: int, most_images: int = 2) -> datasets.Dataset:
    """So many, with no image to `most_images`, in turn."""
    message = {"role": datasets.Value("string"), "content": datasets.Value("string")}
    features = datasets.Features({"messages": datasets.List(message), "images": datasets.List(datasets.Image())})
    rows = [record(index, index % (most_images + 1)) for index in range(number)]
    return datasets.Dataset.from_list(rows, features=features)


def as_prompts(dataset: datasets.Dataset) -> datasets.Dataset:
    """The same as prompts and completions."""
    return dataset.map(
        lambda row: {"prompt": row["messages"][:1], "completion": row["messages"][1:]}, remove_columns="messages"
    )
