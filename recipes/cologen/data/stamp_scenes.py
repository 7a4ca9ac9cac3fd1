"""Scenes made of stamps: which, how large, where, on what background; and scenes that follow from one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from PIL import Image as PilImage

from recipes.cologen.data.composition import Composition, CutOut
from recipes.cologen.data.record import Image
from recipes.cologen.data.scene import BACKGROUNDS, COLOURS
from recipes.cologen.data.sources.stamps import Stamp
from recipes.cologen.data.world import pick

SHARE_OF_SIDE = (0.25, 0.6)
"""Longer side of a cut-out, as a share of the picture's shorter one."""
LEAST_SHOWN = 0.6
"""Share of every cut-out that no other may cover."""
_TRIES = 20
_GROUND = {**BACKGROUNDS, **COLOURS}

ReadStamp = Callable[[Stamp], PilImage.Image]
Photographs = Sequence[tuple[str, Image]]
"""Backgrounds by what they show."""


class StampScene(NamedTuple):
    """A composition and what its background is called: `on navy`."""

    composition: Composition
    ground: str

    def caption(self) -> str:
        """`a bear at the top left and a frog at the bottom right on navy`."""
        size = self.composition.size
        named = [f"{item.phrase} at the {item.place(*size)}" for item in self.composition.cut_outs]
        return f"{' and '.join(named)} {self.ground}"


class Edit(NamedTuple):
    """An instruction and what it leads to."""

    kind: str
    prompt: str
    after: Composition


class SceneMaker:
    """Draws scenes from one stream of random numbers.

    Args:
        rng: The stream.
        stamps: What scenes are made of.
        read: Opens a stamp's picture.
        size: Height and width.
        photographs: Backgrounds beside plain and graded ones.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        stamps: Sequence[Stamp],
        read: ReadStamp,
        size: tuple[int, int],
        photographs: Photographs = (),
    ) -> None:
        """Keep what scenes are made of; see the class."""
        self._rng, self._stamps, self._read, self._size = rng, stamps, read, size
        self._photographs = photographs

    def scene(self, count: int) -> StampScene:
        """A scene of up to so many stamps; of three or more the last may be the first one's twin."""
        ground, background = self._ground()
        composition = Composition(background)
        twin = count > 2 and self._rng.random() < 0.25
        chosen = self._others(count - twin, ())
        for stamp in chosen:
            composition = self._placed(composition, stamp) or composition
        if twin and len(composition.cut_outs) > 1:
            first = next(stamp for stamp in chosen if stamp.label == composition.cut_outs[0].label)
            composition = self._placed(composition, first) or composition
        return StampScene(composition, ground)

    def subject(self, composition: Composition) -> CutOut:
        """A cut-out whose name no other has."""
        labels = [item.label for item in composition.cut_outs]
        alone = [item for item in composition.cut_outs if labels.count(item.label) == 1]
        return alone[int(self._rng.integers(len(alone)))]

    def elsewhere(self, subject: CutOut, scene: StampScene) -> tuple[str, Composition]:
        """The subject in another scene, with company half of the time; and the prompt that asks for it."""
        ground, background = self._other_ground(scene)
        moved = self._anywhere(subject)
        target = Composition(background, (moved,))
        prompt = f"the same {subject.label} at the {moved.place(*self._size)}"
        if self._rng.random() < 0.5:
            target = self._joined(target, (subject.label,)) or target
        for other in target.cut_outs[1:]:
            prompt += f" and {other.phrase} at the {other.place(*self._size)}"
        return f"{prompt} {ground}", target

    def together(self, subject: CutOut, scene: StampScene) -> tuple[str, Composition, Composition] | None:
        """A second subject alone, and both in another scene; None where they do not fit into one.

        Returns:
            The prompt that asks for both, the second one's scene, the scene of both.
        """
        (other,) = self._others(1, (subject.label,))
        alone = self._placed(Composition(self._ground()[1]), other)
        if alone is None:
            return None
        ground, background = self._other_ground(scene)
        for _ in range(_TRIES):
            items = (self._anywhere(subject), self._anywhere(alone.cut_outs[0]))
            both = Composition(background, items)
            if min(both.shown()) >= LEAST_SHOWN:
                named = [f"the same {item.label} at the {item.place(*self._size)}" for item in items]
                return f"{' and '.join(named)} {ground}", alone, both
        return None

    def edit(self, scene: StampScene, turn: int) -> Edit:
        """The edit whose turn it is, or the next that this scene allows."""
        kinds = (self._remove, self._recolour, self._swap, self._add, self._move)
        for step in range(len(kinds)):
            edit = kinds[(turn + step) % len(kinds)](scene.composition)
            if edit is not None:
                return edit
        raise AssertionError("removing is always possible")

    def _remove(self, scene: Composition) -> Edit | None:
        item = self.subject(scene)
        return Edit("remove", f"remove the {item.label}", scene.exchanged(item))

    def _recolour(self, scene: Composition) -> Edit | None:
        item = self.subject(scene)
        colour = pick(self._rng, tuple(COLOURS))
        after = scene.exchanged(item, item.tinted(COLOURS[colour]))
        return Edit("recolour", f"make the {item.label} {colour}", after)

    def _swap(self, scene: Composition) -> Edit | None:
        item = self.subject(scene)
        others = self._others(1, [other.label for other in scene.cut_outs])
        if not others:
            return None
        new = self._sized(others[0], max(item.pixels.shape[:2]))
        middle = (2 * item.left + item.pixels.shape[1], 2 * item.top + item.pixels.shape[0])
        left, top = (
            int(np.clip((at - length) // 2, 0, whole - length))
            for at, length, whole in zip(middle, new.pixels.shape[1::-1], self._size[::-1], strict=True)
        )
        after = scene.exchanged(item, replace(new, left=left, top=top))
        return self._clear(Edit("swap", f"replace the {item.label} with {new.phrase}", after))

    def _add(self, scene: Composition) -> Edit | None:
        after = self._joined(scene, [other.label for other in scene.cut_outs])
        if after is None:
            return None
        new = after.cut_outs[-1]
        return Edit("add", f"add {new.phrase} at the {new.place(*self._size)}", after)

    def _move(self, scene: Composition) -> Edit | None:
        item = self.subject(scene)
        for _ in range(_TRIES):
            moved = self._anywhere(item)
            prompt = f"move the {item.label} to the {moved.place(*self._size)}"
            found = self._clear(Edit("move", prompt, scene.exchanged(item, moved)))
            if found is not None and moved.place(*self._size) != item.place(*self._size):
                return found
        return None

    def _clear(self, edit: Edit) -> Edit | None:
        return edit if min(edit.after.shown(), default=1.0) >= LEAST_SHOWN else None

    def _others(self, count: int, taken: Sequence[str]) -> list[Stamp]:
        """So many stamps that are called differently, fewer where there are no more."""
        found: dict[str, Stamp] = {}
        for place in self._rng.permutation(len(self._stamps)):
            stamp = self._stamps[int(place)]
            if stamp.label not in taken:
                found.setdefault(stamp.label, stamp)
            if len(found) == count:
                break
        return list(found.values())

    def _placed(self, scene: Composition, stamp: Stamp) -> Composition | None:
        """The scene with one more in front; None where it would always hide too much."""
        low, high = SHARE_OF_SIDE
        for _ in range(_TRIES):
            item = self._sized(stamp, round(self._rng.uniform(low, high) * min(self._size)))
            joined = scene.with_front(self._anywhere(item))
            if min(joined.shown()) >= LEAST_SHOWN:
                return joined
        return None

    def _joined(self, scene: Composition, taken: Sequence[str]) -> Composition | None:
        """The scene with one more in front that is called otherwise; None where there is none, or no room."""
        others = self._others(1, taken)
        return self._placed(scene, others[0]) if others else None

    def _anywhere(self, item: CutOut) -> CutOut:
        height, width = item.pixels.shape[:2]
        top = int(self._rng.integers(self._size[0] - height + 1))
        return replace(item, top=top, left=int(self._rng.integers(self._size[1] - width + 1)))

    def _sized(self, stamp: Stamp, side: int) -> CutOut:
        """A stamp as a cut-out whose longer side has so many pixels."""
        picture = self._read(stamp).convert("RGBA")
        scale = side / max(picture.size)
        width, height = (max(1, round(scale * length)) for length in picture.size)
        pixels = np.asarray(picture.resize((width, height), PilImage.Resampling.LANCZOS))
        if stamp.may_mirror and self._rng.random() < 0.5:
            pixels = pixels[:, ::-1]
        return CutOut(stamp.label, stamp.phrase, stamp.number, pixels.copy(), 0, 0)

    def _other_ground(self, scene: StampScene) -> tuple[str, Image]:
        ground, background = self._ground()
        while ground == scene.ground:
            ground, background = self._ground()
        return ground, background

    def _ground(self) -> tuple[str, Image]:
        """A background, and what a prompt calls it."""
        kind = int(self._rng.integers(3 if self._photographs else 2))
        if kind == 2:
            shows, photograph = self._photographs[int(self._rng.integers(len(self._photographs)))]
            return f"on a photograph of {shows}", photograph
        first, second = (str(name) for name in self._rng.choice(list(_GROUND), size=2, replace=False))
        height, width = self._size
        if kind == 0:
            plain = np.broadcast_to(np.array(_GROUND[first], np.uint8), (height, width, 3))
            return f"on {first}", plain.copy()
        weight = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
        ends = (np.array(_GROUND[name], np.float32) for name in (first, second))
        graded = np.broadcast_to((1 - weight) * next(ends) + weight * next(ends), (height, width, 3))
        return f"on {first} to {second}", np.rint(graded).astype(np.uint8)
