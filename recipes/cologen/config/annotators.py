"""Settings of annotators: what makes the control maps that a data set does not store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator

MAP_KINDS = ("canny", "depth", "soft_edge", "lineart", "segmentation")
"""Control maps, in the order in which control examples choose among them."""
OPTIONS: Mapping[str, Mapping[str, Mapping[str, float]]] = {
    "opencv": {
        "canny": {"low": 100, "high": 200},
        "soft_edge": {"blur": 0.8},
        "lineart": {"threshold": 30},
    },
    "transformers": {"depth": {}, "segmentation": {}},
    "controlnet_aux": {"soft_edge": {}, "lineart": {"coarse": 0}},
}
"""The maps that a kind of annotator can make, with its options and their defaults; `custom` makes any."""


class AnnotatorSettings(BaseModel):
    """What makes one kind of map."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["opencv", "transformers", "controlnet_aux", "custom"]
    """`opencv` needs no network; the others run on the training device."""
    path: str | None = None
    """Folder or hub name of a network; for `custom`, `module:name` of what makes the annotator."""
    revision: str | None = None
    """Commit of a network on the hub."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of a network's weights, whatever the base has."""
    options: dict[str, float] = {}
    """Its own settings, such as Canny's thresholds; see OPTIONS."""

    @model_validator(mode="after")
    def _check(self) -> AnnotatorSettings:
        if self.kind == "opencv":
            given = [name for name in ("path", "revision") if getattr(self, name) is not None]
            if given or self.dtype != "float32":
                wrong = ", ".join(given) or "dtype"
                raise ValueError(f"an opencv annotator has no network, so it takes no {wrong}; leave it out")
        elif self.path is None:
            wanted = "module:name" if self.kind == "custom" else "a folder or hub name"
            raise ValueError(f"path is missing: {self.kind!r} needs {wanted}")
        if self.revision is not None and self.kind != "transformers":
            raise ValueError(f"revision is only read by 'transformers', not by {self.kind!r}; leave it out")
        return self

    def resolved_options(self, map_kind: str) -> dict[str, float]:
        """All options, defaults included."""
        return {**OPTIONS.get(self.kind, {}).get(map_kind, {}), **self.options}


def _check_annotators(annotators: dict[str, AnnotatorSettings]) -> dict[str, AnnotatorSettings]:
    for name, settings in annotators.items():
        if name not in MAP_KINDS:
            raise ValueError(f"{name!r} is no control map; expected one of {', '.join(MAP_KINDS)}")
        if settings.kind == "custom":
            continue
        able = OPTIONS[settings.kind]
        if name not in able:
            others = ", ".join(kind for kind, maps in OPTIONS.items() if name in maps)
            raise ValueError(
                f"{settings.kind!r} cannot make {name!r}, only {', '.join(able)}; for {name!r} take {others} "
                "or custom"
            )
        unknown = sorted(set(settings.options) - set(able[name]))
        if unknown:
            raise ValueError(
                f"{name}.options: {settings.kind!r} has no {', '.join(unknown)} here; it has "
                f"{', '.join(able[name]) or 'none'}"
            )
    return annotators


AnnotatorTable = Annotated[dict[str, AnnotatorSettings], AfterValidator(_check_annotators)]
"""Annotators by the map that they make."""
