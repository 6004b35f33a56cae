"""The licence of a model made of parts: what all of their licences ask for together, never less."""

from collections.abc import Iterable
from dataclasses import dataclass


UNKNOWN = "unknown"

_NOTICE = frozenset({"notice"})
_ATTRIBUTION = _NOTICE | {"changes stated"}
_PATENTS = _ATTRIBUTION | {"patents"}
_NON_COMMERCIAL = _ATTRIBUTION | {"non-commercial"}
# What the licences that are written for everybody ask of who shares further, by the Hub's identifiers.
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
    # For research only, which leaves out commerce.
    "apple-amlr": _PATENTS | {"non-commercial", "terms of apple-amlr"},
}


@dataclass(frozen=True)
class CombinedLicense:
    """
    A model's licence as the Hub's metadata have it.

    Args:
        identifier: of the one licence among the parts' that covers all others, or `"other"`.
        name: the licences that hold together, where no single one covers the others.
    """

    identifier: str
    name: str | None = None

    def __str__(self) -> str:
        return self.identifier if self.name is None else self.name.replace("-and-", " and ")


def combine_licenses(licenses: Iterable[str | None]) -> CombinedLicense:
    """
    The licence of the whole. Licences with terms of their own, such as Llama's or Gemma's, and those that are not known
    here cover the ones that ask for notices alone, and nothing else covers them.

    Args:
        licenses: the Hub's identifiers of the parts' and of the data's licences; `None` where one is not stated, which
            makes the whole's unknown.

    Raises:
        ValueError: there is none.

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
        raise ValueError("There is no licence to combine: give the parts' licences, None where one is not stated.")
    if names == [UNKNOWN]:
        return CombinedLicense("other", UNKNOWN)
    together = frozenset().union(*map(_obligations, names))
    covering = [name for name in names if _obligations(name) == together]
    if covering and UNKNOWN not in names:
        return CombinedLicense(covering[0])
    # What one of the others covers need not be named.
    needed = [name for name in names if not any(_obligations(name) < _obligations(other) for other in names)]
    return CombinedLicense("other", "-and-".join(needed))


def _obligations(name: str) -> frozenset[str]:
    return _OBLIGATIONS.get(name, _PATENTS | {f"terms of {name}"})
