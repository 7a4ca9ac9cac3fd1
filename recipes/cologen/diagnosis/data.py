"""What a run would be trained on: records by source and stage, and what keeps a stage from its pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch._subclasses.fake_tensor import FakeTensorMode

from recipes.cologen.config.run import RunConfig
from recipes.cologen.costs.shapes import BaseShape, read_json
from recipes.cologen.data.annotators.annotate import Annotators
from recipes.cologen.data.buckets import Bucket
from recipes.cologen.data.opening import DataSource, held_out_records, training_records
from recipes.cologen.errors import CologenError
from recipes.cologen.flux.flux2_model import Flux2Model
from recipes.cologen.flux.folder import INDEX_FILE
from recipes.cologen.flux.model import FluxModel
from recipes.cologen.stages import PAIRED_TASKS
from recipes.cologen.training.input.data_card import make_card
from recipes.cologen.training.input.data_check import check_held_out, check_sources
from recipes.cologen.training.preflight import Problem, Unchecked
from recipes.cologen.training.validation.schedule import validated_tasks


class DataFacts(NamedTuple):
    """What was found."""

    card: dict[str, Any] | None
    """The data card that a run would write; None where the data cannot be opened."""
    sizes: Bucket | None
    """Sizes of the target and source that need most; None where they are not known."""
    problems: tuple[Problem, ...]
    unchecked: tuple[Unchecked, ...] = ()


def data_facts(config: RunConfig, stages: Sequence[str], shape: BaseShape | None) -> DataFacts:
    """Open what these stages read, and look at some pictures of each, as training does first."""
    problems, size = [], config.data.size
    try:
        data = training_records(config.data)
        held_out = held_out_records(config.data) if config.validation.samples else None
    except CologenError as error:
        why = "pictures and prompts were not looked at, since the data cannot be opened as a whole"
        unopened = Unchecked("data", why, "mend the data named above, then ask again")
        alike = None if size is None else Bucket(size, size)
        return DataFacts(None, alike, _each_fault(config, str(error)), (unopened,))
    serving = []
    for name in stages:
        try:
            source = data.stage(name)
        except CologenError as error:
            problems.append(Problem("data", str(error)))
        else:
            serving.append(name)
            size = size or _first_size(source.records)
    said: list[str] = []
    found, unchecked = _looked_at(config, serving, data, held_out, shape, said.append)
    problems += found
    annotators, lacking = _annotators(config, stages)
    problems += lacking
    card = make_card(config.model_copy(update={"stages": _only(config, serving)}), data, held_out, annotators)
    card["notes"] = [*said, *_notes(config, stages)]
    card["buckets"], largest = _buckets(config, serving, data)
    alike = None if size is None else Bucket(size, size)
    return DataFacts(card, largest or alike, tuple(problems), tuple(unchecked))


def _notes(config: RunConfig, stages: Sequence[str]) -> list[str]:
    """What a cache that is asked for cannot keep."""
    cache, annotated = config.data.cache, config.data.annotators
    networks = sorted(name for name, one in annotated.items() if one.kind != "opencv")
    read = {task for name in stages for task in (name, *config.stages[name].replay)}
    stages_kept = read if cache.stages is None else cache.stages
    kept = cache.folder is not None and cache.latents and "control" in stages_kept
    if not (networks and kept and "control" in read):
        return []
    return [
        f"the cache does not keep control maps that networks make ({', '.join(networks)}): they are made "
        "and encoded again each time; the pictures and prompts that belong to them are kept"
    ]


def _annotators(config: RunConfig, stages: Sequence[str]) -> tuple[Annotators, list[Problem]]:
    """What makes control maps, loaded where the run would need it: replayed and validated tasks count too."""
    read = {task for name in stages for task in (name, *config.stages[name].replay)}
    if config.data.held_out_place is not None and config.validation.samples:
        read |= set(_validated(config, stages))
    wanted = config.data.annotators if "control" in read else {}
    try:
        return Annotators.load(wanted, torch.device("cpu")), []
    except CologenError as error:
        return Annotators(), [Problem("data", str(error))]


def _each_fault(config: RunConfig, first: str) -> tuple[Problem, ...]:
    """What is wrong with every data set, where training would stop at the first."""
    found = []
    for name, settings in config.data.sets.items():
        try:
            training_records(config.data.model_copy(update={"sets": {name: settings}}))
        except CologenError as error:
            found.append(Problem("data", str(error)))
    return tuple(found) or (Problem("data", first),)


def _buckets(
    config: RunConfig, stages: Sequence[str], data: DataSource
) -> tuple[dict[str, dict[str, int]], Bucket | None]:
    """Records of each stage by aspect bucket, and the largest of these; nothing where there are none."""
    settings: Any = getattr(config.data, "buckets", None)
    if settings is None or not settings.on:
        return {}, None
    counts, sizes = {}, []
    for name in stages:
        source: Any = data.stage(name)
        found = source.bucketed(name, settings)
        counts[name] = {str(bucket): len(of) for bucket, of in zip(*found, strict=True)}
        most = sources_of(config, [name])
        sizes += [(_pixels(bucket, most), bucket) for bucket in found.buckets]
    return counts, max(sizes, default=(0, None))[1]


def _pixels(bucket: Bucket, sources: int) -> int:
    """Pixels of an example of this bucket."""
    target, source = (height * width for height, width in bucket)
    return target + sources * source


def sources_of(config: RunConfig, stages: Sequence[str]) -> int:
    """The most source pictures that an example of these stages may have; only pairs have more than one."""
    return config.data.max_sources if set(stages) & set(PAIRED_TASKS) else 1


def _only(config: RunConfig, serving: Sequence[str]) -> dict[str, Any]:
    return {name: stage for name, stage in config.stages.items() if name in serving}


def _first_size(records: Any) -> tuple[int, int] | None:
    try:
        height, width = records.record(0).image.shape[:2]
        return int(height), int(width)
    except CologenError:  # told by those who look at more than one
        return None


def _looked_at(
    config: RunConfig,
    stages: Sequence[str],
    data: DataSource,
    held_out: DataSource | None,
    shape: BaseShape | None,
    say: Callable[[str], None],
) -> tuple[list[Problem], list[Unchecked]]:
    """What is wrong with pictures and prompts; without the base's tokenizers, prompts of any length pass."""
    model = None if shape is None else tokenizing_model(shape)
    reader: Any = _AnyPrompt() if model is None else model
    reader.long_prompts = config.long_prompts
    found = []
    try:
        check_sources(data, config, stages, reader, say)
    except CologenError as error:
        found.append(Problem("data", str(error)))
    if held_out is not None:
        try:
            check_held_out(held_out, config, _validated(config, stages), reader)
        except CologenError as error:
            found.append(Problem("data", str(error)))
    return found, [] if model is not None else [_unread_prompts(config)]


def _unread_prompts(config: RunConfig) -> Unchecked:
    why = "whether the base can read the prompts, since its tokenizers are not on this machine"
    return Unchecked("prompts", why, f"fetch the base ({config.base.path}), then ask again")


class _AnyPrompt:
    """Stands for a base of which there is no tokenizer: it reads every prompt."""

    closed_vocabulary = None

    def check_length(self, prompt: str) -> None:
        """Accept a prompt."""

    def unknown_words(self, prompt: str) -> tuple[str, ...]:
        """Give none."""
        return ()


def _validated(config: RunConfig, stages: Sequence[str]) -> tuple[str, ...]:
    """The tasks that are validated while these stages are trained, each once."""
    return tuple(dict.fromkeys(task for name in stages for task in validated_tasks(config, name)))


def tokenizing_model(shape: BaseShape) -> FluxModel | Flux2Model | None:
    """A base without weights that can tell whether it would read a prompt; None where it has no tokenizer."""
    index = read_json(shape.folder / INDEX_FILE)
    with FakeTensorMode():
        model = shape.build(torch.float32, (1, 1), encoders=False)
    for part in [name.replace("text_encoder", "tokenizer") for name in shape.parts if "text" in name]:
        folder = shape.folder / part
        if not _holds_tokenizer(folder):
            return None
        kind = getattr(transformers, index[part][1])
        setattr(model, part, kind.from_pretrained(folder, local_files_only=True))
    return model


def _holds_tokenizer(folder: Path) -> bool:
    """Whether there is more than the settings of a tokenizer."""
    return any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "spiece.model"))
