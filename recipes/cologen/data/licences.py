"""Licences of data: their names, which allow commercial use, and the filter `data.licence`."""

from __future__ import annotations

from collections.abc import Sequence

UNSTATED = "unstated"
"""The data set does not say, or its terms are not a licence with a name."""
PERMISSIVE = frozenset(
    {"apache-2.0", "mit", "bsd-3-clause", "cc0-1.0", "cc-by-3.0", "cc-by-4.0", "ms-pl", "public-domain"}
)
"""Licences that allow commercial use and changed copies."""


def is_allowed(licence: str, wanted: str | Sequence[str]) -> bool:
    """Whether data under a licence may be trained on.

    Args:
        licence: Of the data, in lower case, as `Layout.licence` or a set's own `licence` has it.
        wanted: `any`, `permissive`, or the names of those that are allowed.
    """
    if wanted == "any":
        return True
    return licence in (PERMISSIVE if wanted == "permissive" else wanted)
