"""Finds the licence of a model made of parts: it asks for everything that the licences of the parts ask for."""

from collections.abc import Iterable
from dataclasses import dataclass


UNKNOWN = "unknown"

_NOTICE = frozenset({"notice"})
_ATTRIBUTION = _NOTICE | {"changes stated"}
_PATENTS = _ATTRIBUTION | {"patents"}
_NON_COMMERCIAL = _ATTRIBUTION | {"non-commercial"}
# What common licences require of anyone who shares the work, by the Hub's identifiers of the licences.
_OBLIGATIONS = {
    "cc0-1.0": frozenset(),
    "unlicense": frozenset(),
    "mit": _NOTICE,
    "isc": _NOTICE,
    "bsd-2-clause": _NOTICE,
    "bsd-3-clause": _NOTICE,
    "cdla-permissive-2.0": _NOTICE,
    "odc-by": _ATTRIBUTION,
    "cc-by-4.0": _ATTRIBUTION,
    "apache-2.0": _PATENTS,
    "cc-by-sa-4.0": _ATTRIBUTION | {"same licence: cc-by-sa"},
    "gpl-3.0": _PATENTS | {"same licence: gpl"},
    "agpl-3.0": _PATENTS | {"same licence: gpl", "source of services"},
    "cc-by-nc-4.0": _NON_COMMERCIAL,
    "cc-by-nc-sa-4.0": _NON_COMMERCIAL | {"same licence: cc-by-nc-sa"},
    # It allows only research, which excludes commercial use.
    "apple-amlr": _PATENTS | {"non-commercial", "terms of apple-amlr"},
}


@dataclass(frozen=True)
class CombinedLicense:
    """
    The licence of a model in the form of the Hub's metadata.

    Args:
        identifier: identifier of the licence that covers the licences of all parts, or `"other"` if there is no such
            licence.
        name: names of the licences that apply together, joined by `"-and-"`, if no single one covers the others.
    """

    identifier: str
    name: str | None = None

    def __str__(self) -> str:
        return self.identifier if self.name is None else self.name.replace("-and-", " and ")


def combine_licenses(licenses: Iterable[str | None]) -> CombinedLicense:
    """
    Finds the licence of the whole model. A licence that this module does not know, such as Llama's or Gemma's, is
    taken to have special terms: it covers permissive licences up to Apache 2.0, and no other licence covers it.

    Args:
        licenses: the Hub's identifiers of the licences of the parts and of the data. `None` stands for a licence that
            is not stated; then the licence of the whole is unknown, or unknown in part.

    Raises:
        ValueError: `licenses` is empty.

    Example:

    ```python
    >>> from mm1_hf.hub.licenses import combine_licenses

    >>> combine_licenses(["apache-2.0", "apple-amlr"]).identifier
    'apple-amlr'
    >>> combine_licenses(["llama3.2", "apple-amlr"])
    CombinedLicense(identifier='other', name='apple-amlr-and-llama3.2')

    ```
    """
    names = sorted({UNKNOWN if license is None else license.lower() for license in licenses})
    if not names:
        raise ValueError(
            "There is no licence to combine. Give the licences of the parts, with None for one that is not stated."
        )
    if names == [UNKNOWN]:
        return CombinedLicense("other", UNKNOWN)
    together = frozenset().union(*map(_obligations, names))
    covering = [name for name in names if _obligations(name) == together]
    if covering and UNKNOWN not in names:
        return CombinedLicense(covering[0])
    # A licence that one of the others covers need not be named.
    needed = [name for name in names if not any(_obligations(name) < _obligations(other) for other in names)]
    return CombinedLicense("other", "-and-".join(needed))


def _obligations(name: str) -> frozenset[str]:
    return _OBLIGATIONS.get(name, _PATENTS | {f"terms of {name}"})
