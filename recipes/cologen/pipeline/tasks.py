"""What a task asks of a call: the form of its prompt, and what the source stream gets to see of a picture."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Mapping

import numpy as np
import torch
from PIL import Image as PilImage

from recipes.cologen.config.annotators import AnnotatorSettings
from recipes.cologen.data.annotators.annotate import Annotators, to_picture
from recipes.cologen.data.annotators.opencv import OPENCV_MAPS
from recipes.cologen.data.control import PROMPTS
from recipes.cologen.data.framing import CLASS_MAPS
from recipes.cologen.data.grounding import MARK_COLOURS
from recipes.cologen.data.picture_files import cut_hole
from recipes.cologen.data.record import Image, Mask
from recipes.cologen.data.views import VIEWS
from recipes.cologen.errors import AnnotatorError, PictureError, PromptError
from recipes.cologen.pipeline.pixels import fitted

TASKS = tuple(VIEWS)
"""Names of the five tasks, which are the names of the stages too."""
MARKED = ("draw a ", "cover the ")
"""How grounding's prompts begin."""
Annotator = Callable[[Image], Image]
"""Makes a control map, uint8 [height, width, 3], of a picture of that size."""


ANNOTATORS: Mapping[str, Annotator] = OPENCV_MAPS
"""Control maps that need nothing but the picture; a pipeline's `annotators` starts with these."""


def run_annotator(
    kind: str, settings: Mapping[str, AnnotatorSettings], device: Callable[[], torch.device]
) -> Annotator:
    """The annotator that a run names for a kind of map; what it needs is loaded when it is first called.

    A custom one is imported then: `annotator_of_file` is for settings of whose origin nothing is known.

    Args:
        kind: Of the map.
        settings: The run's `data.annotators`.
        device: Where the network is to run, asked when it is loaded.
    """

    @functools.cache
    def loaded() -> tuple[Annotators, torch.device]:
        place = device()
        return Annotators.load({kind: settings[kind]}, place), place

    def annotate(image: Image) -> Image:
        annotators, place = loaded()
        return to_picture(
            annotators.annotate(kind, torch.from_numpy(image).permute(2, 0, 1)[None].to(place))[0]
        )

    return annotate


def annotator_of_file(
    kind: str, settings: Mapping[str, AnnotatorSettings], device: Callable[[], torch.device]
) -> Annotator:
    """The annotator that a file beside a pool names; one of somebody's own code is neither imported nor made.

    Such a file may come from anywhere. In the place of code stands a function that says how to run it.

    Args:
        kind: as in `run_annotator`.
        settings: as in `run_annotator`.
        device: as in `run_annotator`.
    """
    if settings[kind].kind != "custom":
        return run_annotator(kind, settings, device)

    def refuse(image: Image) -> Image:
        raise AnnotatorError(
            f"in training {settings[kind].path} made the {kind} maps: code that the pool's settings name, "
            "which is not run because a file names it. If you trust it: "
            f"pipe.annotators[{kind!r}] = recipes.cologen.pipeline.tasks.run_annotator({kind!r}, "
            "pipe.generation.annotators, lambda: pipe.device)."
        )

    return refuse


def check_task(task: str | None, experts: tuple[str, ...]) -> None:
    """Refuse a task that is neither one of the five nor the name of an expert of the pool.

    Raises:
        PromptError: Lists what there is, and names the nearest.
    """
    known = tuple(dict.fromkeys((*TASKS, *experts)))
    if task is None or task in known:
        return
    near = difflib.get_close_matches(str(task), known, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise PromptError(f"there is no task {task!r}; expected one of {', '.join(known)}, or None.{hint}")


def worded(prompt: str, task: str | None, control: str | None) -> str:
    """Give a prompt the form that its task was trained on; one that has it already stays as it is.

    Grounding takes a phrase ("the blue car") and asks for a box around it; control begins with the kind of
    map. The other tasks were trained on captions and instructions as they are.

    Args:
        prompt: As the user wrote it.
        task: The task, or None for the prompt as it is.
        control: Kind of the control map, where it is known.
    """
    if task == "grounding" and not prompt.lower().startswith(MARKED):
        phrase = prompt.removeprefix("the ")
        free = [colour for colour in MARK_COLOURS if colour not in phrase.split()]
        return f"draw a {(free or MARK_COLOURS)[0]} box around the {phrase}"
    if task == "control" and control is not None and not prompt.lower().startswith(tuple(PROMPTS.values())):
        return f"{PROMPTS[control]} {prompt}"
    return prompt


def shows_classes(task: str | None, kind: str | None, prompt: str) -> bool:
    """Tell whether a source that is a map already shows classes by colours, which resizing must not mix.

    Args:
        task: The task; only control reads maps.
        kind: Of the map, where it is known.
        prompt: As the user wrote it; without a kind, its beginning says which map the source is.
    """
    said = next((name for name, words in PROMPTS.items() if prompt.lower().startswith(words)), None)
    return task == "control" and (kind or said) in CLASS_MAPS


def check_control(
    task: str | None, control: str | None, annotate: bool, known: Mapping[str, Annotator]
) -> None:
    """Refuse a kind of map that does not exist, cannot be made here, or is not asked of the control task.

    Raises:
        PictureError: Says which kinds there are and where others come from.
    """
    if control is None:
        return
    if task != "control":
        raise PictureError(
            f'control={control!r} names a kind of control map, which only task="control" reads; the task is '
            f"{task!r}."
        )
    if control not in PROMPTS:
        raise PictureError(f"there is no control map {control!r}; expected one of {', '.join(PROMPTS)}.")
    if annotate and control not in known:
        raise PictureError(
            f"no annotator here makes a {control!r} map of a photo (here are: {', '.join(known) or 'none'}). "
            "Give the map itself with annotate=False, or a function from a picture to its map: "
            f"pipe.annotators[{control!r}] = function."
        )


def prepared(
    picture: PilImage.Image,
    mask: Mask | None,
    size: tuple[int, int],
    task: str | None,
    annotator: Annotator | None,
    classes: bool = False,
) -> Image:
    """What the source stream sees of a picture.

    Args:
        picture: RGB, of any size.
        mask: Where to paint, for inpainting only.
        size: Height and width that it gets.
        task: The task.
        annotator: Makes the control map; None where the picture is the map, or the task is another.
        classes: Whether the picture is a map whose colours stand for classes.

    Raises:
        PictureError: There is a mask for another task than inpainting, no hole to fill, or the annotator
            gives something else than a map of the picture's size.
    """
    if task == "inpainting":
        return cut_hole(np.asarray(picture), mask, size)
    if mask is not None:
        raise PictureError(
            f'mask is for task="inpainting"; the task is {task!r}, which reads all of the picture.'
        )
    image = fitted(picture, size, classes=classes)
    if annotator is None:
        return image
    annotated = annotator(image)
    if annotated.shape != image.shape or annotated.dtype != image.dtype:
        raise PictureError(
            f"the annotator gave {annotated.dtype} {list(annotated.shape)} for a picture {image.dtype} "
            f"{list(image.shape)}; a map has the picture's size, three channels, and values from 0 to 255."
        )
    return annotated
