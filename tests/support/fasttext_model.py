"""Writes fastText models of a few words, in fastText's own binary form."""

import struct
from pathlib import Path


def write_model(path: Path, labels: dict[str, list[str]], sure: float = 8.0) -> str:
    """
    A classifier that gives a text the label whose words it has most of.

    Args:
        path: the file.
        labels: the words of each label.
        sure: difference of the labels' logits for a text of one label's words alone.
    """
    words = [(word, index) for index, found in enumerate(labels.values()) for word in found]
    dim = len(labels)
    # Supervised with softmax; neither n-grams nor buckets.
    arguments = struct.pack("<12id", dim, 5, 1, 1, 5, 1, 3, 3, 0, 0, 0, 100, 1e-4)
    entries = b"".join(f"{word}\0".encode() + struct.pack("<qb", 1, 0) for word, _ in words)
    entries += b"".join(f"__label__{label}\0".encode() + struct.pack("<qb", 1, 1) for label in labels)
    size = len(words) + len(labels)
    dictionary = struct.pack("<3i2q", size, len(words), len(labels), size, -1) + entries
    rows = [[float(index == column) for column in range(dim)] for _, index in words]
    outputs = [[sure * (index == column) for column in range(dim)] for index in range(dim)]
    matrices = b"".join(
        struct.pack("<?2q", False, len(matrix), dim) + b"".join(struct.pack(f"<{dim}f", *row) for row in matrix)
        for matrix in (rows, outputs)
    )
    path.write_bytes(struct.pack("<2i", 793712314, 12) + arguments + dictionary + matrices)
    return str(path)
