"""
CIDEr-D (Vedantam et al., 2015), for COCO, NoCaps and TextCaps, equal to the scorer that the COCO evaluation uses.

A caption is compared with each reference of its image by n-grams of one to four words. An n-gram weighs as many times
as it occurs, and less the more images of the set have it in a reference. The similarity is a cosine in which an n-gram
counts at most as often as in the reference, times a Gaussian penalty on the difference of lengths, times 10. It is
averaged over references and lengths of n-grams. The length of a caption is its number of *bigrams*, so that a caption
of one word has length 0: a slip in the original that every published score shares.

The weights depend on all images, so that the score of an image can only be computed together with the whole set; an
image alone scores 0. Papers print the mean times 100: 1.14 is 114.

Captions are tokenised by `tokenizer.py`, which imitates the tokeniser of the original, a program in Java.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from .samples import mean, score_each, texts
from .tokenizer import tokenize


HEADLINE = "cider"
UNIT = "fraction"
SAMPLE_COLUMNS: tuple[str, ...] = ()
GROUP_COLUMNS: tuple[str, ...] = ()

_MAX_N = 4
_SIGMA = 6.0
_SCALE = 10.0

NGram = tuple[str, ...]


def cider(candidates: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> list[float]:
    """
    Returns the score of each image, from 0 to 10.

    Args:
        candidates: the words of each image's caption.
        references: the words of each reference caption of each image; at least one reference for an image.

    Example:

    ```python
    >>> from mm1_hf.evaluation.metrics.cider.scoring import cider

    >>> cider([["cat"], ["dog"]], [[["cat"]], [["dog"]]])
    [2.5, 2.5]

    ```
    """
    counted = [[_ngrams(words) for words in captions] for captions in references]
    images_with = Counter(ngram for captions in counted for ngram in set().union(*captions))
    log_images = math.log(len(candidates))

    def weights(counts: Counter[NGram]) -> list[dict[NGram, float]]:
        vectors: list[dict[NGram, float]] = [{} for _ in range(_MAX_N)]
        for ngram, count in counts.items():
            vectors[len(ngram) - 1][ngram] = count * (log_images - math.log(max(1, images_with[ngram])))
        return vectors

    scores = []
    for words, captions in zip(candidates, counted, strict=True):
        counts = _ngrams(words)
        vectors = weights(counts)
        similarities = []
        for reference in captions:
            difference = _bigrams(counts) - _bigrams(reference)
            penalty = math.exp(-(difference**2) / (2 * _SIGMA**2))
            pairs = zip(vectors, weights(reference), strict=True)
            similarities += [penalty * _clipped_cosine(vector, other) for vector, other in pairs]
        scores.append(_SCALE * sum(similarities) / len(similarities))
    return scores


def per_sample(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[dict[str, float]]:
    """
    Returns the score of every image. The images must be those of the whole set.

    Args:
        predictions: the caption of each image.
        references: the reference captions of each image.
    """
    pairs = score_each(_tokenized, str, predictions=predictions, references=references)
    candidates, captions = zip(*pairs, strict=True)
    return [{HEADLINE: value} for value in cider(candidates, captions)]


def aggregate(samples: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """
    Returns the mean over the images.

    Args:
        samples: what `per_sample` returned.
    """
    return {HEADLINE: mean(samples, HEADLINE)}


def _tokenized(prediction: str, reference: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    return tokenize(prediction), [tokenize(caption) for caption in texts(reference)]


def _ngrams(words: Sequence[str]) -> Counter[NGram]:
    return Counter(
        tuple(words[start : start + n]) for n in range(1, _MAX_N + 1) for start in range(len(words) - n + 1)
    )


def _bigrams(counts: Counter[NGram]) -> int:
    return sum(count for ngram, count in counts.items() if len(ngram) == 2)


def _clipped_cosine(vector: Mapping[NGram, float], reference: Mapping[NGram, float]) -> float:
    product = sum(
        min(weight, reference.get(ngram, 0.0)) * reference.get(ngram, 0.0) for ngram, weight in vector.items()
    )
    lengths = math.hypot(*vector.values()) * math.hypot(*reference.values())
    return product / lengths if lengths else 0.0
