"""Draws one picture with a trained run.

    python -m recipes.cologen.generate --checkpoint runs/tiny --task editing \
        --image in.png --prompt "make the red circle blue" --output out.png

Reading and writing pictures is in pictures.py, sampling in flux/.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from prw.errors import PrwError
from recipes.cologen.data.control import PROMPTS
from recipes.cologen.data.record import Image
from recipes.cologen.data.scene import SIDE
from recipes.cologen.data.views import VIEWS
from recipes.cologen.errors import CologenError, GuidanceError, PictureError, RunFolderError
from recipes.cologen.flux.model import FluxModel
from recipes.cologen.flux.sampling import generate
from recipes.cologen.generate_batch import also_batches
from recipes.cologen.generate_grid import axis, draw_grid
from recipes.cologen.picture_settings import FULL_POOL, reads_settings, same_run
from recipes.cologen.pictures import (
    check_output,
    cut_hole,
    enlarge,
    fit_picture,
    read_picture,
    write_picture,
)
from recipes.cologen.report.run_reader import RunReader
from recipes.cologen.terminal import positive, silence_loading_bars
from recipes.cologen.training.batches import to_unit_range
from recipes.cologen.training.growth import load_base, load_stage
from recipes.cologen.training.interruption import STOPPED
from recipes.cologen.training.validation import to_pictures
from recipes.cologen.words import check_words as check_words

SHOWN_PIXELS = 256
"""Pixels that the shorter side of a small output is enlarged to, unless --scale says otherwise."""
MOST_PIXELS = 8192
"""Longest side of a picture that is written."""
EXAMPLES = """\
prompts that the embedded world's tasks were trained on:
  inpainting      --prompt "small red circle top left on gray"       (the whole picture, hole filled)
  grounding       --prompt "draw a red box around the blue square" or "cover the blue square with a red mask"
  control         --prompt "canny edge to image small red circle top left on gray"
  customization   --prompt "the same object at the top left on navy"
  editing         --prompt "make the red circle blue"                or remove, add, move, replace, change
"""


@also_batches
@reads_settings
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0 done, 1 refused, 130 stopped."""
    asked = _parser().parse_args(arguments)
    silence_loading_bars()
    console = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)
    try:
        check_output(asked.output)
        drawn = draw_grid(asked) if asked.grid else _draw(asked, console)
        scale = asked.scale or max(1, SHOWN_PIXELS // min(drawn.shape[:2]))
        if scale * max(drawn.shape[:2]) > MOST_PIXELS:
            raise PictureError(
                f"--scale {scale} would make a picture of {scale * drawn.shape[1]}x{scale * drawn.shape[0]} "
                f"pixels; at most {MOST_PIXELS} a side are written. Give a smaller one."
            )
        write_picture(enlarge(drawn, scale), asked.output)
    except (CologenError, PrwError) as error:
        console.print(f"error: {error}")
        return 1
    except OSError as error:
        console.print(f"error: a file cannot be read or written: {error}")
        return 1
    except KeyboardInterrupt:
        console.print("stopped; nothing was written")
        return STOPPED
    console.print(
        f"written: {asked.output}, {drawn.shape[1]}x{drawn.shape[0]} pixels, enlarged {scale} times"
    )
    return 0


def _draw(asked: argparse.Namespace, console: Console) -> Image:
    run = RunReader(asked.checkpoint)
    settings = run.settings
    same_run(settings.fingerprint(), asked.of_run, asked.checkpoint)
    stage = _stage(run, asked)
    picture = read_picture(asked.image)
    mask = None if asked.mask is None else read_picture(asked.mask)
    model = load_base(settings, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    check_words(model, asked.prompt)
    source = _source(asked, picture, mask, _size(run, model, picture), console)
    if stage is not None:  # the pool saved at a stage's end is the later pool as of that stage, bit for bit
        name = run.finished_stages()[-1] if stage == FULL_POOL else stage
        load_stage(model, run.pool(name), name)
    pixels = generate(
        model,
        [asked.prompt],
        to_unit_range(torch.from_numpy(source).permute(2, 0, 1)[None], model.device),
        generator=[torch.Generator().manual_seed(asked.seed)],
        height=source.shape[0],
        width=source.shape[1],
        steps=asked.steps or settings.sampling.steps,
        source_timestep=settings.flow.source_timestep,
        guidance=_guidance(asked, settings.sampling.guidance, model),
    )
    return to_pictures(pixels)[0]


def _guidance(asked: argparse.Namespace, usual: float, model: FluxModel) -> float | None:
    if not model.transformer.config.guidance_embeds:
        if asked.guidance is not None:
            raise GuidanceError("this base reads no guidance scale; leave --guidance out.")
        return None
    return usual if asked.guidance is None else float(asked.guidance)


def _stage(run: RunReader, asked: argparse.Namespace) -> str | None:
    """The stage whose pool draws: the task's own unless told otherwise; `full-pool`, or None for no experts.

    Raises:
        RunFolderError: The stage, or every stage, is unfinished.
    """
    if asked.experts_off:
        return None
    stage: str = asked.as_of or asked.task
    if stage != FULL_POOL:
        run.pool(stage)
    elif not run.finished_stages():
        raise RunFolderError(
            f"{run.path} has no finished stage yet; train it first, or draw with --experts-off."
        )
    return stage


def _source(
    asked: argparse.Namespace, picture: Image, mask: Image | None, size: tuple[int, int], console: Console
) -> Image:
    """What the model gets to see, at its size; says on the console what had to be changed for that."""
    fitted = fit_picture(picture, *size, name=str(asked.image))
    notices = [fitted.notice]
    if asked.task == "inpainting":
        if mask is not None:
            hole = fit_picture(mask, *size, name=str(asked.mask))
            notices.append(hole.notice)
            mask = hole.image
        source = cut_hole(fitted.image, mask)
    elif mask is not None:
        raise PictureError(f"--mask is for --task inpainting; {asked.task} reads the whole picture.")
    else:
        source = fitted.image
    if asked.task == "control" and not asked.prompt.startswith(tuple(PROMPTS.values())):
        kinds = ", ".join(f'"{prompt}"' for prompt in PROMPTS.values())
        notices.append(f"control was trained on prompts that begin with the kind of map: {kinds}.")
    for notice in notices:
        if notice is not None:
            console.print(f"note: {notice}")
    return source


def _size(run: RunReader, model: FluxModel, picture: Image) -> tuple[int, int]:
    """Height and width to draw at: those of training, else the picture's own in whole tokens."""
    data = run.settings.data
    if data.source == "world":
        return SIDE, SIDE
    if data.size is not None:
        return data.size
    side = 2 * model.vae_scale_factor
    height, width = (max(side, length // side * side) for length in picture.shape[:2])
    return height, width


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m recipes.cologen.generate",
        description="Draw one picture with a trained run.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--checkpoint", type=Path, metavar="RUN", help="the folder that training wrote", required=True
    )
    parser.add_argument("--task", choices=tuple(VIEWS), required=True)
    parser.add_argument(
        "--image", type=Path, help="the source: a picture, or for control the map itself", required=True
    )
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--output", type=Path, help="file to write, in a folder that is there", required=True)
    parser.add_argument(
        "--mask", type=Path, help="inpainting: white where to paint (else: black holes in --image)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the starting noise (default: 0)")
    parser.add_argument("--steps", type=positive, help="sampling steps (default: those of the run)")
    parser.add_argument("--guidance", type=float, help="for a guidance-distilled base (default: the run's)")
    _add_other_forms(parser)
    experts = parser.add_mutually_exclusive_group()
    experts.add_argument(
        "--as-of",
        choices=(*VIEWS, FULL_POOL),
        help="draw with the pool and router of the moment when this stage ended (default: the task's own "
        "stage, because the router drifts: after later stages it sends old tasks to newer experts; "
        f"{FULL_POOL} lets it)",
    )
    experts.add_argument("--experts-off", action="store_true", help="draw with the base alone")
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--scale",
        type=positive,
        help=f"pixels a side that each pixel is shown as (default: to at least {SHOWN_PIXELS} in all)",
    )
    size.add_argument("--native", dest="scale", action="store_const", const=1, help="do not enlarge")
    return parser


def _add_other_forms(parser: argparse.ArgumentParser) -> None:
    """Options that draw otherwise than from the options of one picture."""
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
    parser.add_argument("--of-run", metavar="FINGERPRINT", help="refuse a run with other settings than these")


if __name__ == "__main__":
    sys.exit(main())
