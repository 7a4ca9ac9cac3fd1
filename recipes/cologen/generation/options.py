"""The options of `generate`, and prompts to begin with."""

from __future__ import annotations

import argparse
from pathlib import Path

from recipes.cologen.cli import add_checkpoint_argument, positive
from recipes.cologen.config.annotators import MAP_KINDS
from recipes.cologen.data.views import VIEWS
from recipes.cologen.generation.grid import axis
from recipes.cologen.generation.settings import FULL_POOL, MOST_STEPS

SHOWN_PIXELS = 256
"""Pixels that the shorter side of a small output is enlarged to, unless --scale says otherwise."""
USAGE = """\
%(prog)s --checkpoint RUN --task TASK --image FILE --prompt WORDS --output FILE [...]
       %(prog)s --settings FILE --output FILE [...]
       %(prog)s --checkpoint RUN --batch JOBS --output FOLDER"""
EXAMPLES = """\
prompts that the embedded world's tasks were trained on:
  inpainting      --prompt "red circle top left on gray"             (the whole picture, hole filled)
  grounding       --prompt "draw a red box around the blue square" or "cover the blue square with a red mask"
  control         --prompt "canny edge to image red circle top left on gray"
  customization   --prompt "the same object at the top left on navy"
  editing         --prompt "make the red circle blue"                or remove, add, move, replace, change
"""


def options() -> argparse.ArgumentParser:
    """What `python -m recipes.cologen.generate` reads off the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.cologen.generate",
        description="Generate one picture with a trained run.",
        usage=USAGE,
        epilog=EXAMPLES,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_checkpoint_argument(parser)
    parser.add_argument("--task", choices=tuple(VIEWS), required=True, help="what is asked of the source")
    parser.add_argument(
        "--image",
        type=Path,
        help="the source: a picture, or for control the map itself; what is transparent in it is seen white",
        required=True,
    )
    parser.add_argument("--prompt", required=True, help="what is to be generated; examples are below")
    parser.add_argument(
        "--output",
        type=Path,
        help="file to write, in a folder that is there; an older one is replaced",
        required=True,
    )
    parser.add_argument("--seed", type=int, help="of the starting noise, 0 or more (default: 0)")
    parser.add_argument(
        "--steps", type=_steps, help=f"sampling steps, at most {MOST_STEPS} (default: those of the run)"
    )
    parser.add_argument("--guidance", type=float, help="for a guidance-distilled base (default: the run's)")
    _add_inputs(parser)
    _add_other_forms(parser)
    experts = parser.add_mutually_exclusive_group()
    experts.add_argument(
        "--as-of",
        choices=(*VIEWS, FULL_POOL),
        help="generate with the pool and router of the moment when this stage ended (default: the task's own "
        "stage, because the router drifts: after later stages it sends old tasks to newer experts; "
        f"{FULL_POOL} lets it)",
    )
    experts.add_argument("--experts-off", action="store_true", help="generate with the base alone")
    _add_sizes(parser)
    return parser


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    """Options for further inputs."""
    parser.add_argument(
        "--also", type=Path, nargs="+", default=[], help="further sources, where a run was trained on several"
    )
    parser.add_argument(
        "--mask",
        type=Path,
        help="inpainting: white (brighter than half of its brightest point) where to paint (else: black "
        "holes in --image)",
    )
    parser.add_argument(
        "--draw-map",
        choices=MAP_KINDS,
        help="control: --image is a photograph; make this map of it first, as the run's data.annotators do",
    )


def _add_sizes(parser: argparse.ArgumentParser) -> None:
    """Options for the generated and the written size."""
    parser.add_argument(
        "--size",
        metavar="WxH",
        help="width and height; the source is scaled to cover it and its middle kept (default: "
        "those that the run was trained at, else the source's own, up to 1024x1024 pixels in all)",
    )
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument(
        "--scale",
        type=positive,
        help=f"pixels a side that each pixel is shown as (default: to at least {SHOWN_PIXELS} in all)",
    )
    shown.add_argument("--native", dest="scale", action="store_const", const=1, help="do not enlarge")


def _add_other_forms(parser: argparse.ArgumentParser) -> None:
    """Options for more than one picture, and for files of settings."""
    parser.add_argument(
        "--grid",
        type=axis,
        nargs="+",
        metavar="SETTING=VALUES",
        help="one sheet: seed=0..3, or steps=5,10 seed=0..3 (also guidance, pool); labelled, enlarged",
    )
    parser.add_argument(
        "--settings",
        metavar="FILE",
        help="a picture's settings, as the page gives them; what else is given wins",
    )
    parser.add_argument(
        "--batch", metavar="JOBS", help="a line of JSON for each picture; --output is a folder"
    )
    parser.add_argument(
        "--of-run",
        metavar="FINGERPRINT",
        help="refuse a run with other settings than these: `run` in a file of settings; a refusal says what "
        "the run at hand has",
    )
    parser.add_argument(
        "--config",
        help="refuse a run with other settings than this config's; what is read are the run's own",
    )
    # Which pictures are from the file of --settings, so that messages can say so.
    parser.add_argument("--held", choices=("image", "mask"), action="append", help=argparse.SUPPRESS)


def _steps(text: str) -> int:
    try:
        steps = positive(text)
    except argparse.ArgumentTypeError:
        steps = 0
    if not 1 <= steps <= MOST_STEPS:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 to {MOST_STEPS}, got {text!r}")
    return steps
