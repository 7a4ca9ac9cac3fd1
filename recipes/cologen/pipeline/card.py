"""The model card of a saved pipeline: what it is, pictures, what it learnt from, the licence of its base."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import ModelCard, ModelCardData
from PIL import Image as PilImage

from prw import Weave
from recipes.cologen.flux.locate import HUB_NAME
from recipes.cologen.pipeline.pixels import as_picture

README = "README.md"
DATA_CARDS = ("data_card.md", "data_card.json")
"""What a run says of its data; a saved pipeline carries both on."""
LICENCE_KEYS = ("license", "license_name", "license_link")
"""How the header of a card on the hub names a licence."""
PICTURES = "pictures"
"""Folder of the card's pictures."""

PAGE = """# {title}

A pool of routed LoRA experts ({experts}) on the keys and values of {base}, for pictures drawn from a prompt
and a source picture. Stock diffusers opens this folder too, as the base alone.

```python
from recipes.cologen.pipeline import {pipeline}

pipe = {pipeline}.from_pretrained("path/to/this/folder")
picture = pipe("make the red circle blue", image, task="editing").images[0]
```

| | |
|---|---|
| base | {base} |
| experts, oldest first | {experts} |
| rank, scale | {rank}, {scale:g} |
| granularity, gate | {granularity}, {gate} |
| source timestep | {source_timestep} |
"""
UNKNOWN_LICENCE = (
    "The base's licence is not recorded here. This folder holds the base's weights: look its licence up "
    "before you share them."
)
KNOWN_LICENCE = (
    "The weights of the base are under {licence}, which holds for this folder as a whole. What the data "
    "sets' licences say is under Data."
)


@dataclass(frozen=True)
class Shown:
    """One picture of a card.

    Attributes:
        drawn: What the pipeline drew: PIL, numpy or torch.
        prompt: Of what.
        task: By which task; None for none.
        source: The picture that it was drawn from; None shows none.
    """

    drawn: Any
    prompt: str
    task: str | None = None
    source: Any = None


@dataclass(frozen=True)
class Card:
    """What a card says beside what the pipeline knows of itself.

    Attributes:
        title: Its heading; None makes one of the base's name.
        about: A paragraph under the table.
        pictures: Shown in this order.
        data: What the experts learnt from, as Markdown; None takes the run's data card.
        licence: Of the base, as the hub calls it ("apache-2.0"); None takes what the base's own card says.
    """

    title: str | None = None
    about: str = ""
    pictures: Sequence[Shown] = ()
    data: str | None = None
    licence: str | None = None


class Origin(NamedTuple):
    """What is known of where a pipeline's weights are from.

    Attributes:
        base: Name of the base.
        licence: What the base's card says of it, by `LICENCE_KEYS`.
        texts: Files of the base that its licence is in.
        data: Folder of the run's data card, None where there is none.
    """

    base: str | None = None
    licence: Mapping[str, Any] = {}
    texts: tuple[Path, ...] = ()
    data: Path | None = None


@dataclass(frozen=True)
class Facts:
    """What a pipeline knows of itself, for its card."""

    pipeline: str
    source_timestep: str
    weave: Weave | None
    origin: Origin = field(default_factory=Origin)


def origin_of(name: str, folder: Path, run: Path | None) -> Origin:
    """Read where a base is from: its own card, or that of a pipeline that was saved whole.

    Args:
        name: What the base was opened as.
        folder: Where its card and licence lie.
        run: Folder of the run that trained the pool; None looks beside the base.
    """
    said: dict[str, Any] = {}
    if (folder / README).is_file():
        said = ModelCard.load(folder / README, ignore_metadata_errors=True).data.to_dict()
    base = said.get("base_model") if said.get("library_name") == "diffusers" and _is_whole(said) else None
    data = next((place for place in (run, folder) if place and (place / DATA_CARDS[0]).is_file()), None)
    return Origin(
        str(base or name),
        {key: said[key] for key in LICENCE_KEYS if said.get(key)},
        tuple(sorted(folder.glob("LICENSE*"))),
        data,
    )


def write_card(folder: Path, card: Card | None, facts: Facts) -> None:
    """Write a card, its pictures, the run's data cards and the base's licence into a pipeline's folder.

    Args:
        folder: The folder.
        card: What to say; None leaves a card that is there already as it is.
        facts: What the pipeline knows of itself.
    """
    origin = facts.origin
    beside = [origin.data / name for name in DATA_CARDS] if origin.data is not None else []
    for file in (*origin.texts, *beside):
        if file.is_file() and file.resolve() != (folder / file.name).resolve():
            shutil.copyfile(file, folder / file.name)
    if card is None and (folder / README).is_file():
        return
    card = card or Card()
    licence = {"license": card.licence} if card.licence else dict(origin.licence)
    parts = [
        _head(card, facts),
        _pictures(folder, card.pictures),
        f"## Data\n\n{_data(card, origin)}\n",
        f"## Licence\n\n{_licence(licence)}\n",
    ]
    text = f"---\n{_header(licence, origin)}\n---\n\n" + "\n".join(part for part in parts if part)
    (folder / README).write_text(text, encoding="utf-8")


def _is_whole(said: Mapping[str, Any]) -> bool:
    return "cologen" in (said.get("tags") or ())


def _header(licence: Mapping[str, Any], origin: Origin) -> str:
    on_the_hub = (
        origin.base is not None and HUB_NAME.fullmatch(origin.base) and not Path(origin.base).exists()
    )
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag="image-to-image",
        tags=["cologen", "prw", "routed-lora"],
        base_model=origin.base if on_the_hub else None,
        **licence,
    )
    text: str = data.to_yaml()
    return text


def _head(card: Card, facts: Facts) -> str:
    base = Path(facts.origin.base).name if facts.origin.base else "a FLUX base"
    weave = facts.weave
    experts = ", ".join(weave.experts) if weave is not None and weave.experts else "none"
    settings = None if weave is None else weave.settings
    page = PAGE.format(
        title=card.title or f"CoLoGen on {base}",
        base=base,
        experts=experts,
        pipeline=facts.pipeline,
        rank="none" if settings is None else settings.rank,
        scale=0.0 if settings is None else settings.scale,
        granularity="none" if settings is None else settings.granularity,
        gate="none" if settings is None else settings.gate,
        source_timestep=facts.source_timestep,
    )
    return f"{page}\n{card.about.strip()}\n" if card.about else page


def _pictures(folder: Path, pictures: Sequence[Shown]) -> str:
    lines = []
    for number, shown in enumerate(pictures, start=1):
        (folder / PICTURES).mkdir(exist_ok=True)
        drawn = _save(folder, f"{number:02}-drawn.png", as_picture(shown.drawn, "drawn"))
        source = ""
        if shown.source is not None:
            source = _save(folder, f"{number:02}-source.png", as_picture(shown.source, "source"))
        lines.append(f"| {source} | {_cell(shown.prompt)} | {shown.task or ''} | {drawn} |")
    if not lines:
        return ""
    rows = "\n".join(lines)
    return f"## Pictures\n\n| source | prompt | task | drawn |\n|---|---|---|---|\n{rows}\n"


def _save(folder: Path, name: str, picture: PilImage.Image) -> str:
    picture.save(folder / PICTURES / name)
    return f"![{name.removesuffix('.png')}]({PICTURES}/{name})"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _data(card: Card, origin: Origin) -> str:
    """What the experts learnt from: as given, or the run's data card with its headings two steps lower."""
    if card.data is not None:
        return card.data.strip()
    if origin.data is None:
        return "Not recorded."
    text = (origin.data / DATA_CARDS[0]).read_text(encoding="utf-8")
    return re.sub(r"^#", "###", text, flags=re.MULTILINE).strip()


def _licence(licence: Mapping[str, Any]) -> str:
    if not licence:
        return UNKNOWN_LICENCE
    name = licence.get("license_name") or licence.get("license")
    link = licence.get("license_link")
    return KNOWN_LICENCE.format(licence=f"[{name}]({link})" if link else name)
