"""Generates one picture with a trained run.

    python -m recipes.cologen.generate --checkpoint runs/tiny --task editing \
        --image in.png --prompt "make the red circle blue" --output out.png

The options are in generation/options.py; one picture is sampled in generation/sample.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial

import torch
from rich.console import Console

from prw.errors import PrwError
from recipes.cologen.cli import plain_console, silence_loading_bars
from recipes.cologen.data.annotators.annotate import annotate
from recipes.cologen.data.picture_files import (
    Fitted,
    check_output,
    enlarge,
    fit_picture,
    read_mask,
    read_source,
    write_picture,
)
from recipes.cologen.data.record import Image
from recipes.cologen.errors import CologenError, PictureError, RunFolderError
from recipes.cologen.generation.batch import also_batches
from recipes.cologen.generation.grid import generate_grid
from recipes.cologen.generation.options import SHOWN_PIXELS, options
from recipes.cologen.generation.prompts import check_prompt_given, check_words
from recipes.cologen.generation.sample import Source, sample_picture, source_of
from recipes.cologen.generation.settings import (
    FULL_POOL,
    MOST_SIDE,
    called,
    reads_settings,
    same_config,
    same_run,
    wanted_by,
)
from recipes.cologen.pipeline.tasks import worded
from recipes.cologen.runs.interruption import STOPPED
from recipes.cologen.runs.loading import load_base, load_stage
from recipes.cologen.runs.reader import RunReader


@also_batches
@reads_settings
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0 done, 1 refused, 130 stopped."""
    args = options().parse_args(arguments)
    silence_loading_bars()
    console = plain_console()
    try:
        pictures = (args.image, *args.also, *([args.mask] if args.mask else []))
        check_output(args.output, pictures)
        _check_task(args)
        check_prompt_given(args.prompt)
        picture = generate_grid(args, console.print) if args.grid else _generate(args, console)
        most = MOST_SIDE // max(picture.shape[:2])  # a long, narrow picture is enlarged less
        scale = args.scale or max(1, min(SHOWN_PIXELS // min(picture.shape[:2]), most))
        if scale * max(picture.shape[:2]) > MOST_SIDE:
            raise PictureError(
                f"--scale {scale} would make a picture of {scale * picture.shape[1]}x"
                f"{scale * picture.shape[0]} pixels; at most {MOST_SIDE} a side are written. Give a "
                "smaller one."
            )
        write_picture(enlarge(picture, scale), args.output)
    except (CologenError, PrwError) as error:
        console.print(f"error: {error}")
        return 1
    except OSError as error:
        console.print(f"error: a file cannot be read or written: {error}")
        return 1
    except KeyboardInterrupt:
        console.print("stopped; nothing was written")
        return STOPPED
    height, width = picture.shape[:2]
    how = f" ({width}x{height} enlarged {scale} times)" if scale > 1 else ""
    console.print(f"written: {args.output}, {scale * width}x{scale * height} pixels{how}")
    return 0


def _generate(args: argparse.Namespace, console: Console) -> Image:
    run = RunReader(args.checkpoint)
    settings = run.settings
    same_run(settings.fingerprint(), args.of_run, args.checkpoint, args.settings)
    same_config(settings, args.config, args.checkpoint)
    stage = _stage(run, args)
    wanted = wanted_by(args, settings.sampling.steps)
    picture = read_source(args.image, called(args, "image"))
    mask = None if args.mask is None else read_mask(args.mask, called(args, "mask"))
    model = load_base(settings, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    model.long_prompts = "refuse"  # the user who typed it should know
    check_words(model, worded(args.prompt, args.task, None))
    source = _source(args, picture, mask, partial(source_of, model, settings, size=wanted.size), console)
    if args.draw_map is not None:
        source = annotate(source, args.draw_map, settings.data.annotators, model.device)
    further = _further(args, settings.data.max_sources, source.shape, console)
    if stage is not None:  # the pool saved at a stage's end is the later pool as of that stage, bit for bit
        name = run.finished_stages()[-1] if stage == FULL_POOL else stage
        load_stage(model, run.pool(name), name)
    return sample_picture(model, settings, wanted, [source, *further], progress=True)


def _check_task(args: argparse.Namespace) -> None:
    """Refuse options of another task.

    Raises:
        PictureError: Names the option and its task.
    """
    if args.mask is not None and args.task != "inpainting":
        raise PictureError(f"--mask is for --task inpainting; {args.task} reads the whole picture.")
    if args.draw_map is not None and args.task != "control":
        raise PictureError(f"--draw-map is for --task control; {args.task} reads the picture itself.")


def _stage(run: RunReader, args: argparse.Namespace) -> str | None:
    """The stage whose pool is used, the task's own by default; `full-pool`, or None for no experts.

    Raises:
        RunFolderError: The stage, or every stage, is unfinished.
    """
    if args.experts_off:
        return None
    stage: str = args.as_of or args.task
    if stage != FULL_POOL:
        run.pool(stage)
    elif not run.finished_stages():
        raise RunFolderError(
            f"{run.path} has no finished stage yet; train it first, or generate with --experts-off."
        )
    return stage


def _source(
    args: argparse.Namespace,
    picture: Fitted,
    mask: Fitted | None,
    seen_of: Callable[..., Source],
    console: Console,
) -> Image:
    """What the model gets to see; says on the console what had to be changed for that."""
    seen = seen_of(
        args.task,
        args.prompt,
        picture.image,
        None if mask is None else mask.image,
        kind=args.draw_map,
        is_photo=args.draw_map is not None,
        names=(called(args, "image"), called(args, "mask")),
    )
    read = [one.notice for one in (picture, mask) if one is not None and one.notice is not None]
    for notice in (*read, *seen.notices):
        console.print(f"note: {notice}")
    return seen.image


def _further(args: argparse.Namespace, most: int, shape: tuple[int, ...], console: Console) -> list[Image]:
    """The further sources at the first one's size.

    Raises:
        PictureError: More than the run was trained on.
    """
    if 1 + len(args.also) > most:
        raise PictureError(
            f"{1 + len(args.also)} sources were given, but the run was trained on at most {most} "
            "(data.max_sources); leave some of --also out"
        )
    read = [read_source(path) for path in args.also]
    fitted = [
        fit_picture(one.image, shape[0], shape[1], name=str(path))
        for one, path in zip(read, args.also, strict=True)
    ]
    for one in (*read, *fitted):
        if one.notice is not None:
            console.print(f"note: {one.notice}")
    return [one.image for one in fitted]


if __name__ == "__main__":
    sys.exit(main())
