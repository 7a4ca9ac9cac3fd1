"""What the settings of a data set mean: its layout, tasks, options, rows, and where its files lie."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from recipes.cologen.config.data import SetSettings
from recipes.cologen.data.additions import Additions
from recipes.cologen.data.layouts import LAYOUTS, Layout
from recipes.cologen.data.sources.json_files import JsonRows
from recipes.cologen.data.sources.paired_folder import PairedFolder
from recipes.cologen.data.sources.rows import Rows
from recipes.cologen.data.sources.shards import ShardRows
from recipes.cologen.data.sources.tables import open_arrow, open_hub, open_parquet
from recipes.cologen.errors import DataSetError


def set_licence(settings: SetSettings, name: str) -> str:
    """The licence of a set: the layout's, unless its settings give another.

    Raises:
        DataSetError: There is no such layout.
    """
    return (settings.licence or layout_of(settings, f"data.sets.{name}").licence).lower()


def open_rows(settings: SetSettings, layout: Layout, origin: str) -> Rows:
    """The rows of a set, by the kind of source that its path names.

    Raises:
        DataSetError: They cannot be opened, or the layout cannot be read from such a source.
    """
    if layout.open_rows is not None:
        return layout.open_rows(settings, origin)
    kind, _, path = settings.path.partition(":")
    if kind == "parquet":
        return open_parquet(path, origin)
    if kind == "arrow":
        return open_arrow(path, origin, settings.split)
    if kind == "hub":
        return open_hub(path, origin, settings.split, settings.subset, settings.revision)
    if kind == "tar":
        return ShardRows(path, origin)
    if kind == "json":
        return JsonRows(path, origin)
    if layout.name == "paired":
        return PairedFolder(path, origin)
    if layout.name == "own":
        return JsonRows(str(Path(path).expanduser() / "metadata.jsonl"), origin)
    raise DataSetError(
        f"{origin}: the layout {layout.name!r} is not read from a folder; 'own' and 'paired' are"
    )


def layout_of(settings: SetSettings, origin: str) -> Layout:
    """The layout that the settings name.

    Raises:
        DataSetError: There is none of that name.
    """
    if settings.layout not in LAYOUTS:
        raise DataSetError(f"{origin}.layout is {settings.layout!r}; expected one of {', '.join(LAYOUTS)}")
    return LAYOUTS[settings.layout]


def tasks_of(settings: SetSettings, layout: Layout, origin: str) -> tuple[str, ...]:
    """The stages that a set serves.

    Raises:
        DataSetError: Its layout cannot serve one that is asked for.
    """
    tasks = settings.tasks if settings.tasks is not None else layout.tasks
    unable = [task for task in tasks if task not in layout.tasks]
    if unable or not tasks:
        raise DataSetError(
            f"{origin}.tasks asks for {', '.join(unable) or 'nothing'}; the layout {layout.name!r} serves "
            f"{', '.join(layout.tasks)}"
        )
    return tasks


def options_of(settings: SetSettings, layout: Layout, origin: str) -> Mapping[str, float]:
    """The layout's options, with what the settings change.

    Raises:
        DataSetError: The layout has no such option.
    """
    unknown = sorted(set(settings.options) - set(layout.options))
    if unknown:
        raise DataSetError(
            f"{origin}.options: the layout {layout.name!r} has no {', '.join(unknown)}; it has "
            f"{', '.join(layout.options) or 'none'}"
        )
    return {**layout.options, **settings.options}


def root_of(settings: SetSettings) -> Path | None:
    """Say where file names start: `images`, else the rows' own folder, where they lie in one."""
    if settings.images is not None:
        return Path(settings.images).expanduser()
    kind, _, path = settings.path.partition(":")
    if kind == "folder":
        return Path(path).expanduser()
    return Path(path.split(",")[0]).expanduser().parent if kind == "json" else None


def additions_of(settings: SetSettings, layout: Layout, origin: str) -> Additions | None:
    """What is added to rows, by file name; None where nothing is.

    Raises:
        DataSetError: The layout takes no additions, or they cannot be read.
    """
    if settings.additions is None:
        return None
    if layout.key is None:
        raise DataSetError(
            f"{origin}.additions: the layout {layout.name!r} takes none; its rows are complete"
        )
    return Additions(settings.additions, origin)
