"""Stamps: cut-outs with alpha, composed into scenes that serve all five stages with exact masks and pairs.

Every scene follows from the option `seed` and its number alone.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
from PIL import Image as PilImage
from PIL import ImageOps

from recipes.cologen.config.data import SetSettings
from recipes.cologen.data.composition import Composition
from recipes.cologen.data.layouts.layout import Layout, Reading
from recipes.cologen.data.layouts.own import ALL_TASKS
from recipes.cologen.data.raw import RawObject, RawPair, RawRecord
from recipes.cologen.data.record import Image
from recipes.cologen.data.sources.stamps import StampScenes
from recipes.cologen.data.stamp_scenes import SceneMaker, StampScene
from recipes.cologen.errors import DataSetError

_OPTIONS = {
    "scenes": 10_000,
    "seed": 0,
    "height": 512,
    "width": 512,
    "least": 1,
    "most": 3,
    "subjects": 1,
    "photographs": 0,
    "signs": 0,
    "min_side": 64,
    "held_out": -1,
}
_PHOTOGRAPHS = {
    "astronaut": "an astronaut",
    "chelsea": "a cat",
    "coffee": "a cup of coffee",
    "rocket": "a rocket",
}
"""Those that scikit-image carries in its package, and what they show."""


def _open(settings: SetSettings, origin: str) -> StampScenes:
    kind, _, path = settings.path.partition(":")
    if kind != "folder":
        raise DataSetError(
            f"{origin}: stamps are read from a folder; write folder:/usr/share/tuxpaint/stamps"
        )
    options = {**_OPTIONS, **settings.options}
    for name, least in {"scenes": 1, "least": 1, "most": options["least"], "height": 16, "width": 16}.items():
        if options[name] < least:
            raise DataSetError(f"{origin}.options.{name} is {options[name]:g}; expected at least {least:g}")
    if options["subjects"] not in (1, 2):
        raise DataSetError(f"{origin}.options.subjects is {options['subjects']:g}; expected 1 or 2")
    if options["photographs"]:
        _photographs((16, 16), origin)
    return StampScenes(
        path,
        scenes=round(options["scenes"]),
        min_side=round(options["min_side"]),
        signs=bool(options["signs"]),
        held_out=round(options["held_out"]),
        origin=origin,
    )


@lru_cache(maxsize=2)
def _photographs(size: tuple[int, int], origin: str) -> tuple[tuple[str, Image], ...]:
    """Photographs for backgrounds, their middle brought to a size (height, width)."""
    try:
        import skimage.data
    except ImportError as error:
        raise DataSetError(
            f"{origin}.options.photographs: they are scikit-image's; pip install scikit-image, or leave it 0"
        ) from error
    loaded = ((shows, getattr(skimage.data, name)()) for name, shows in _PHOTOGRAPHS.items())
    return tuple(
        (shows, np.asarray(ImageOps.fit(PilImage.fromarray(pixels), size[::-1]))) for shows, pixels in loaded
    )


def _record(reading: Reading) -> RawRecord:
    """A scene: its objects, depth by stacking order, kinds as classes, a pair for each paired stage."""
    options, number = reading.options, int(reading.row["scene"])
    rng = np.random.default_rng((round(options["seed"]), number))
    size = (round(options["height"]), round(options["width"]))
    photographs = _photographs(size, reading.dataset) if options["photographs"] else ()
    maker = SceneMaker(
        rng, reading.row["stamps"], lambda stamp: reading.picture(stamp.file), size, photographs
    )
    scene = maker.scene(int(rng.integers(round(options["least"]), round(options["most"]) + 1)))
    made = scene.composition
    if not made.cut_outs:
        raise reading.broken("its stamps show nothing: they have no pixel of alpha 128 or more")
    picture = PilImage.fromarray(made.picture())
    pairs = []
    if "customization" in reading.tasks:
        pairs.append(_customization(reading, maker, scene))
    if "editing" in reading.tasks:
        edit = maker.edit(scene, number)
        pairs.append(_pair("editing", edit.after, edit.prompt, edit.kind))
    return RawRecord(
        id=reading.id,
        picture=picture,
        caption=scene.caption(),
        origin=reading.origin(picture),
        objects=tuple(
            RawObject(item.label, item.label, mask, None)
            for item, mask in zip(made.cut_outs, made.masks, strict=True)
        ),
        depth=PilImage.fromarray(made.depth()),
        segmentation=made.classes(),
        pairs=tuple(pairs),
    )


def _customization(reading: Reading, maker: SceneMaker, scene: StampScene) -> RawPair:
    """One of the scene's things elsewhere; with `subjects` 2 beside another, which is a second source."""
    subject = maker.subject(scene.composition)
    if reading.options["subjects"] == 1:
        prompt, after = maker.elsewhere(subject, scene)
        return _pair("customization", after, prompt, "alone" if len(after.cut_outs) == 1 else "with another")
    made = maker.together(subject, scene)
    if made is None:
        raise reading.broken(f"no second subject fits into one scene with {subject.phrase}")
    prompt, alone, both = made
    further = (PilImage.fromarray(alone.picture()),)
    return replace(_pair("customization", both, prompt, "two subjects"), further=further)


def _pair(task: str, after: Composition, prompt: str, kind: str) -> RawPair:
    return RawPair(task, PilImage.fromarray(after.picture()), prompt, kind)


STAMPS = Layout(
    name="stamps",
    home="https://www.tuxpaint.org",
    tasks=ALL_TASKS,
    licence="gpl-2.0",
    columns=(),
    record=_record,
    options=_OPTIONS,
    open_rows=_open,
    size="785 stamps, 34 MB (tuxpaint-stamps-default 2022.06.04)",
)
