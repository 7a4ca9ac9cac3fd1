"""Memory of some GPUs by name, so that a run can be planned for a card that is not here."""

from __future__ import annotations

import difflib

from recipes.cologen.errors import CologenError

GPUS: dict[str, int] = {
    "T4": 16,
    "L4": 24,
    "A10": 24,
    "RTX 3090": 24,
    "RTX 4090": 24,
    "RTX 5090": 32,
    "A100 40GB": 40,
    "RTX A6000": 48,
    "RTX 6000 Ada": 48,
    "L40S": 48,
    "A100 80GB": 80,
    "H100": 80,
    "RTX PRO 6000": 96,
    "H200": 141,
    "B200": 180,
}
"""Gigabytes (10^9 bytes) on the makers' data sheets, www.nvidia.com/en-us/data-center and /geforce; what a
driver shows may be a few percent more or, with error correction on, less."""
GIGABYTE = 10**9


class UnknownGpuError(CologenError, ValueError):
    """A GPU was named that the table does not have."""


def gpu_memory(name: str) -> tuple[str, int]:
    """A GPU of the table and its bytes, by its name or a part of it that only it has.

    Raises:
        UnknownGpuError: None or several fit; the nearest are named.
    """
    wanted = name.lower().replace("nvidia", "").replace("geforce", "").strip()
    exact = [known for known in GPUS if known.lower() == wanted]
    fitting = exact or [known for known in GPUS if wanted and wanted in known.lower()]
    if len(fitting) == 1:
        return fitting[0], GPUS[fitting[0]] * GIGABYTE
    near = fitting or difflib.get_close_matches(name, GPUS, n=3, cutoff=0.4) or list(GPUS)
    raise UnknownGpuError(
        f"{'several GPUs fit' if fitting else 'there is no GPU'} {name!r}; one of {', '.join(near)} may be "
        "meant. Others by their memory: --gpu-memory 24GB"
    )


def memory_size(text: str) -> int:
    """Bytes of a size such as `24GB` (10^9 each), `24GiB` (2^30 each) or plain `24` (GB).

    Raises:
        UnknownGpuError: It is no such size.
    """
    lowered = text.strip().lower()
    factor = 2**30 if lowered.endswith("gib") else GIGABYTE
    number = lowered.removesuffix("gib").removesuffix("gb").strip()
    try:
        size = float(number)
    except ValueError:
        size = 0.0
    if not 0 < size < 1e6:
        raise UnknownGpuError(f"--gpu-memory expects a size such as 24GB or 24GiB, got {text!r}")
    return round(size * factor)
