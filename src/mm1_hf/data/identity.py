"""What decides the rows that a mixture makes, in a form that a checkpoint can hold and a resumed run can compare."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import datasets

from mm1_hf.model.processing_mm1 import MM1Processor


# Records of a data set that are looked at, evenly spread.
_SAMPLED = 16
# Entries of an image processor's settings that say how it is loaded, not what it does.
_LOADING = {"image_processor_type", "processor_class", "transformers_version", "auto_map"}


def dataset_identity(dataset: datasets.Dataset | datasets.IterableDataset) -> dict[str, Any]:
    """
    The number of records of a data set, and a digest of 16 of them. A stream does not know its records: it has
    neither.

    Args:
        dataset: the records, with images not decoded. Entries between two underscores on each side, which the reader
            adds, are left out.
    """
    if not isinstance(dataset, datasets.Dataset):
        return {}
    digest = hashlib.sha256()
    number = len(dataset)
    for index in sorted({number * place // _SAMPLED for place in range(_SAMPLED)}) if number else ():
        record = {name: value for name, value in dataset[index].items() if name != "__folder__"}
        digest.update(repr(record).encode("utf-8", "backslashreplace"))
    return {"records": number, "digest of 16 records": digest.hexdigest()[:12]}


def processor_identity(processor: MM1Processor) -> dict[str, Any]:
    """
    The settings of a processor that decide tokens and tiles.

    Args:
        processor: the processor of a run.
    """
    images = {
        name: value
        for name, value in processor.image_processor.to_dict().items()
        if value is not None and name not in _LOADING and not name.startswith("_")
    }
    template = str(getattr(processor, "chat_template", None)).encode()
    settings = {
        "image_processor": images,
        "num_image_tokens": processor.num_image_tokens,
        "vocabulary": len(processor.tokenizer),
        "digest of the chat template": hashlib.sha256(template).hexdigest()[:12],
    }
    return json.loads(json.dumps(settings, default=str))


def differences(saved: Any, now: Any, name: str = "") -> dict[str, tuple[Any, Any]]:
    """
    The entries in which two nested dicts differ, by their path, such as `sources.caption.weight`.

    Args:
        saved: the first, for example that of a checkpoint.
        now: the second.
        name: path of the two.

    Returns:
        For each path, the value of the first and that of the second; `None` where there is no entry.

    Example:

    ```python
    >>> from mm1_hf.data.identity import differences

    >>> differences({"seed": 0, "sources": {"a": 1}}, {"seed": 0, "sources": {"a": 2}})
    {'sources.a': (1, 2)}

    ```
    """
    if not (isinstance(saved, Mapping) and isinstance(now, Mapping)):
        return {} if saved == now else {name: (saved, now)}
    found = {}
    for key in dict.fromkeys((*saved, *now)):
        found |= differences(saved.get(key), now.get(key), f"{name}.{key}" if name else str(key))
    return found


def listed(changes: Mapping[str, tuple[Any, Any]]) -> str:
    """
    Differences in words, for a message.

    Args:
        changes: what [`differences`] returned.
    """
    return "; ".join(f"{name}: {saved!r} in the checkpoint, {now!r} now" for name, (saved, now) in changes.items())
