"""Writes a small FLUX base of random weights in the real layout, and pictures to train it on.

    python -m recipes.cologen.tools.random_weights --output runs/random_weights
    python -m recipes.cologen.train --config flux_dev_tiny_weights --output runs/flux_dev_tiny_weights

What FLUX.1-dev would run through is then run through on a CPU in a minute; pictures stay noise.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from recipes.cologen.cli import positive, silence_loading_bars
from recipes.cologen.costs.shapes import read_json
from recipes.cologen.errors import BaseModelError, CologenError
from recipes.cologen.flux.folder import INDEX_FILE
from recipes.cologen.tools.example_inputs import write_example_inputs
from recipes.cologen.tools.random_flux1 import write_random_flux
from recipes.cologen.tools.random_flux2 import write_random_flux2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    args = _parser().parse_args(arguments)
    console = Console(soft_wrap=True, markup=False, highlight=False)
    silence_loading_bars()
    try:
        _check_kind(args.output / "base", args.klein)
        if args.klein:
            write_random_flux2(args.output / "base", args.seed)
        else:
            write_random_flux(args.output / "base", args.seed, guidance_embeds=not args.schnell)
        paths = write_example_inputs(args.output / "data", args.pictures, args.seed)
    except (CologenError, OSError) as error:
        Console(stderr=True, soft_wrap=True, markup=False, highlight=False).print(f"error: {error}")
        return 1
    console.print(f"written: {args.output / 'base'}, and pictures: {', '.join(paths.values())}")
    return 0


def _check_kind(base: Path, klein: bool) -> None:
    """Refuse to write a base of one family over one of the other, which a run may be trained on.

    Raises:
        BaseModelError: There is one of the other family.
    """
    index = base / INDEX_FILE
    if index.is_file() and ("Flux2" in str(read_json(index).get("_class_name"))) != klein:
        there = "FLUX.1" if klein else "FLUX.2"
        raise BaseModelError(f"{base} holds a base of {there}, which a run may go by; give another --output.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m recipes.cologen.tools.random_weights",
        description="Write a small FLUX base of random weights in the real layout, and pictures for it.",
    )
    parser.add_argument("--output", type=Path, default=Path("runs/random_weights"), help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="of weights and pictures (default: 0)")
    parser.add_argument("--pictures", type=positive, default=12, help="in each form (default: 12)")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--schnell", action="store_true", help="a base without guidance, as FLUX.1-schnell")
    kind.add_argument("--klein", action="store_true", help="a base of the other family, as FLUX.2-klein-4B")
    return parser


if __name__ == "__main__":
    sys.exit(main())
