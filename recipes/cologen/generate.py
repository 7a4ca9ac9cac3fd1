"""Draws one picture with a trained run.

    python -m recipes.cologen.generate --checkpoint runs/tiny --task editing \
        --image in.png --prompt "make the red circle blue" --output out.png

Reading and writing pictures is in pictures.py, drawing them in pipeline/.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from prw.errors import PrwError
from recipes.cologen.config import RunConfig
from recipes.cologen.config_annotators import MAP_KINDS
from recipes.cologen.data.annotators.drawing import draw_map
from recipes.cologen.data.control import PROMPTS
from recipes.cologen.data.record import Image
from recipes.cologen.data.scene import SIDE
from recipes.cologen.data.views import VIEWS
from recipes.cologen.errors import CologenError, PictureError, PromptError, RunFolderError
from recipes.cologen.flux.base import FluxBase
from recipes.cologen.flux.pixels import to_unit_range
from recipes.cologen.flux.sampling import generate
from recipes.cologen.flux.shift import scheduler_for
from recipes.cologen.pictures import (
    check_output,
    enlarge,
    fit_picture,
    read_picture,
    write_picture,
)
from recipes.cologen.pipeline import pipeline_over
from recipes.cologen.pipeline.tasks import worded
from recipes.cologen.report.run_reader import RunReader
from recipes.cologen.terminal import positive, silence_loading_bars
from recipes.cologen.training.growth import load_base, load_stage
from recipes.cologen.training.interruption import STOPPED
from recipes.cologen.training.validation import to_pictures

FULL_POOL = "full-pool"
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0 done, 1 refused, 130 stopped."""
    asked = _parser().parse_args(arguments)
    silence_loading_bars()
    console = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)
    try:
        check_output(asked.output)
        drawn = _draw(asked, console)
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
    stage = _stage(run, asked)
    picture = read_picture(asked.image)
    mask = None if asked.mask is None else read_picture(asked.mask)
    model = load_base(settings, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    model.long_prompts = "refuse"  # whoever typed it should know
    check_words(model, worded(asked.prompt, asked.task, None))
    source, hole = _source(asked, picture, mask, _size(run, model, picture), console)
    if asked.draw_map is not None:
        source = draw_map(source, asked.draw_map, settings.data.annotators, model.device)
    further = _further(asked, settings.data.max_sources, source.shape, console)
    if stage is not None:  # the pool saved at a stage's end is the later pool as of that stage, bit for bit
        name = run.finished_stages()[-1] if stage == FULL_POOL else stage
        load_stage(model, run.pool(name), name)
    steps = asked.steps or settings.sampling.steps
    guidance = settings.sampling.guidance if model.reads_guidance else None
    if further:
        return _draw_from_several(model, settings, asked, [source, *further], steps, guidance)
    pipe = pipeline_over(model, settings.flow.source_timestep)
    pipe.scheduler = scheduler_for(model.scheduler.config, settings.sampling.shift)
    pipe.set_progress_bar_config(disable=True)
    (images,) = pipe(
        asked.prompt,
        source,
        hole,
        asked.task,
        generator=torch.Generator().manual_seed(asked.seed),
        num_inference_steps=steps,
        return_dict=False,
        guidance_scale=guidance,
        max_sequence_length=model.max_text_tokens,
    )
    return np.asarray(images[0])


def _draw_from_several(
    model: FluxBase,
    settings: RunConfig,
    asked: argparse.Namespace,
    sources: list[Image],
    steps: int,
    guidance: float | None,
) -> Image:
    """Draw from several sources, which the pipeline does not take."""
    pixels = generate(
        model,
        [worded(asked.prompt, asked.task, None)],
        [to_unit_range(torch.from_numpy(one).permute(2, 0, 1)[None], model.device) for one in sources],
        generator=[torch.Generator().manual_seed(asked.seed)],
        height=sources[0].shape[0],
        width=sources[0].shape[1],
        steps=steps,
        source_timestep=settings.flow.source_timestep,
        guidance=guidance,
        shift=settings.sampling.shift,
    )
    return to_pictures(pixels)[0]


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
) -> tuple[Image, Image | None]:
    """Picture and mask at the model's size; says on the console what had to be changed for that."""
    if mask is not None and asked.task != "inpainting":
        raise PictureError(f"--mask is for --task inpainting; {asked.task} reads the whole picture.")
    if asked.draw_map is not None and asked.task != "control":
        raise PictureError(f"--draw-map is for --task control; {asked.task} reads the picture itself.")
    fitted = fit_picture(picture, *size, name=str(asked.image))
    hole = None if mask is None else fit_picture(mask, *size, name=str(asked.mask))
    notices = [fitted.notice, None if hole is None else hole.notice]
    if asked.task == "control" and not asked.prompt.startswith(tuple(PROMPTS.values())):
        kinds = ", ".join(f'"{prompt}"' for prompt in PROMPTS.values())
        notices.append(f"control was trained on prompts that begin with the kind of map: {kinds}.")
    for notice in notices:
        if notice is not None:
            console.print(f"note: {notice}")
    return fitted.image, None if hole is None else hole.image


def _further(asked: argparse.Namespace, most: int, shape: tuple[int, ...], console: Console) -> list[Image]:
    """The further sources at the first one's size.

    Raises:
        PictureError: More than the run was trained on.
    """
    if 1 + len(asked.also) > most:
        raise PictureError(
            f"{1 + len(asked.also)} sources were given, but the run was trained on at most {most} "
            "(data.max_sources); leave some of --also out"
        )
    fitted = [fit_picture(read_picture(path), shape[0], shape[1], name=str(path)) for path in asked.also]
    for one in fitted:
        if one.notice is not None:
            console.print(f"note: {one.notice}")
    return [one.image for one in fitted]


def _size(run: RunReader, model: FluxBase, picture: Image) -> tuple[int, int]:
    """Height and width to draw at: those of training, else the picture's own in whole tokens."""
    data = run.settings.data
    if data.source == "world":
        return SIDE, SIDE
    if data.size is not None:
        return data.size
    side = 2 * model.vae_scale_factor
    height, width = (max(side, length // side * side) for length in picture.shape[:2])
    return height, width


def check_words(model: FluxBase, prompt: str) -> None:
    """Refuse a prompt with words that the base cannot read.

    Raises:
        PromptError: Names each of them with the nearest words that it knows.
    """
    unknown = model.unknown_words(prompt)
    if not unknown:
        return
    known = sorted(word for word in model.closed_vocabulary or () if word.isalpha())
    hints = []
    for word in dict.fromkeys(unknown):
        near = difflib.get_close_matches(word.lower(), known, n=3, cutoff=0.5)
        hints.append(f"{word!r}" + (f" (near: {', '.join(near)})" if near else ""))
    words = f" It knows: {', '.join(known)}." if 0 < len(known) < 200 else ""
    raise PromptError(f"the base cannot read {'; '.join(hints)}.{words}")


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
    parser.add_argument(
        "--also", type=Path, nargs="+", default=[], help="further sources, where a run was trained on several"
    )
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--output", type=Path, help="file to write, in a folder that is there", required=True)
    parser.add_argument(
        "--mask", type=Path, help="inpainting: white where to paint (else: black holes in --image)"
    )
    parser.add_argument(
        "--draw-map",
        choices=MAP_KINDS,
        help="control: --image is a photograph; draw this map of it first, as the run's data.annotators do",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the starting noise (default: 0)")
    parser.add_argument("--steps", type=positive, help="sampling steps (default: those of the run)")
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


if __name__ == "__main__":
    sys.exit(main())
