"""Draws one picture with a trained run.

    python -m recipes.cologen.generate --checkpoint runs/tiny --task editing \
        --image in.png --prompt "make the red circle blue" --output out.png

The options are in generate_options.py, pictures are read and written by pictures.py, sample_picture.py draws.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial

import torch
from rich.console import Console

from prw.errors import PrwError
from recipes.cologen.data.annotators.drawing import draw_map
from recipes.cologen.data.record import Image
from recipes.cologen.errors import CologenError, PictureError, RunFolderError
from recipes.cologen.generate_batch import also_batches
from recipes.cologen.generate_grid import draw_grid
from recipes.cologen.generate_options import SHOWN_PIXELS, options
from recipes.cologen.picture_settings import (
    FULL_POOL,
    MOST_SIDE,
    called,
    reads_settings,
    same_config,
    same_run,
    wanted_by,
)
from recipes.cologen.pictures import (
    Fitted,
    check_output,
    enlarge,
    fit_picture,
    read_mask,
    read_source,
    write_picture,
)
from recipes.cologen.pipeline.tasks import worded
from recipes.cologen.report.run_reader import RunReader
from recipes.cologen.sample_picture import Source, sample_picture, source_of
from recipes.cologen.terminal import silence_loading_bars
from recipes.cologen.training.growth import load_base, load_stage
from recipes.cologen.training.interruption import STOPPED
from recipes.cologen.words import check_prompt_given, check_words


@also_batches
@reads_settings
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0 done, 1 refused, 130 stopped."""
    asked = options().parse_args(arguments)
    silence_loading_bars()
    console = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)
    try:
        pictures = (asked.image, *asked.also, *([asked.mask] if asked.mask else []))
        check_output(asked.output, pictures)
        _check_task(asked)
        check_prompt_given(asked.prompt)
        drawn = draw_grid(asked, console.print) if asked.grid else _draw(asked, console)
        most = MOST_SIDE // max(drawn.shape[:2])  # a long, narrow picture is enlarged less
        scale = asked.scale or max(1, min(SHOWN_PIXELS // min(drawn.shape[:2]), most))
        if scale * max(drawn.shape[:2]) > MOST_SIDE:
            raise PictureError(
                f"--scale {scale} would make a picture of {scale * drawn.shape[1]}x{scale * drawn.shape[0]} "
                f"pixels; at most {MOST_SIDE} a side are written. Give a smaller one."
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
    height, width = drawn.shape[:2]
    how = f" ({width}x{height} enlarged {scale} times)" if scale > 1 else ""
    console.print(f"written: {asked.output}, {scale * width}x{scale * height} pixels{how}")
    return 0


def _draw(asked: argparse.Namespace, console: Console) -> Image:
    run = RunReader(asked.checkpoint)
    settings = run.settings
    same_run(settings.fingerprint(), asked.of_run, asked.checkpoint, asked.settings)
    same_config(settings, asked.config, asked.checkpoint)
    stage = _stage(run, asked)
    wanted = wanted_by(asked, settings.sampling.steps)
    picture = read_source(asked.image, called(asked, "image"))
    mask = None if asked.mask is None else read_mask(asked.mask, called(asked, "mask"))
    model = load_base(settings, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    model.long_prompts = "refuse"  # whoever typed it should know
    check_words(model, worded(asked.prompt, asked.task, None))
    source = _source(asked, picture, mask, partial(source_of, model, settings, size=wanted.size), console)
    if asked.draw_map is not None:
        source = draw_map(source, asked.draw_map, settings.data.annotators, model.device)
    further = _further(asked, settings.data.max_sources, source.shape, console)
    if stage is not None:  # the pool saved at a stage's end is the later pool as of that stage, bit for bit
        name = run.finished_stages()[-1] if stage == FULL_POOL else stage
        load_stage(model, run.pool(name), name)
    return sample_picture(model, settings, wanted, [source, *further], progress=True)


def _check_task(asked: argparse.Namespace) -> None:
    """Refuse options of another task.

    Raises:
        PictureError: Names the option and its task.
    """
    if asked.mask is not None and asked.task != "inpainting":
        raise PictureError(f"--mask is for --task inpainting; {asked.task} reads the whole picture.")
    if asked.draw_map is not None and asked.task != "control":
        raise PictureError(f"--draw-map is for --task control; {asked.task} reads the picture itself.")


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
    asked: argparse.Namespace,
    picture: Fitted,
    mask: Fitted | None,
    seen_of: Callable[..., Source],
    console: Console,
) -> Image:
    """What the model gets to see; says on the console what had to be changed for that."""
    seen = seen_of(
        asked.task,
        asked.prompt,
        picture.image,
        None if mask is None else mask.image,
        kind=asked.draw_map,
        is_photo=asked.draw_map is not None,
        names=(called(asked, "image"), called(asked, "mask")),
    )
    read = [one.notice for one in (picture, mask) if one is not None and one.notice is not None]
    for notice in (*read, *seen.notices):
        console.print(f"note: {notice}")
    return seen.image


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
    read = [read_source(path) for path in asked.also]
    fitted = [
        fit_picture(one.image, shape[0], shape[1], name=str(path))
        for one, path in zip(read, asked.also, strict=True)
    ]
    for one in (*read, *fitted):
        if one.notice is not None:
            console.print(f"note: {one.notice}")
    return [one.image for one in fitted]


if __name__ == "__main__":
    sys.exit(main())
