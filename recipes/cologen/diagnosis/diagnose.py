"""Puts together what a run needs and costs, as plain values, and all that keeps it from working."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import try_to_load_from_cache

from recipes.cologen.config.run import RunConfig
from recipes.cologen.costs.memory import FLOAT32, Memory, estimate_memory, is_tight, load_of, what_would_fit
from recipes.cologen.costs.memory import trained_parameters as trained
from recipes.cologen.costs.parameters import Counts, count_parameters
from recipes.cologen.costs.shapes import PUBLISHED, BaseShape, find_shape, read_json, read_shape
from recipes.cologen.data.buckets import Bucket
from recipes.cologen.diagnosis.data import DataFacts, data_facts, sources_of
from recipes.cologen.diagnosis.environment import environment, host_bytes
from recipes.cologen.diagnosis.machine import machine_problems, unchecked_machine
from recipes.cologen.diagnosis.probe import Probe
from recipes.cologen.errors import CologenError
from recipes.cologen.flux.distilled import base_warnings
from recipes.cologen.flux.flux2_model import FLUX2_KLEIN, Flux2Model
from recipes.cologen.flux.folder import FLUX1, INDEX_FILE, check_base
from recipes.cologen.flux.locate import HOW_TO_GET_ONE, HUB_NAME
from recipes.cologen.flux.model import FluxModel
from recipes.cologen.training.preflight import Problem, Unchecked, cheap_problems
from recipes.cologen.training.trackers import check_trackers

LAYOUTS_OF_BASES = {FluxModel: FLUX1, Flux2Model: FLUX2_KLEIN}
"""What the folder of each family's bases holds."""


class Gpu(NamedTuple):
    """The device that memory is compared with."""

    name: str
    bytes: int
    is_here: bool = False
    """Whether it is this machine's, so that the run would work with what is installed here."""

    def facts(self) -> dict[str, Any]:
        """Its name and memory, as plain values."""
        return {"name": self.name, "bytes": self.bytes}


class DiagnosisRequest(NamedTuple):
    """What a diagnosis is about."""

    config: RunConfig
    stages: tuple[str, ...]
    output: Path
    processes: int
    gpu: Gpu | None
    probe: bool = False
    """Whether the run is to take steps on this machine, and not only on the one that it is meant for."""

    @property
    def micro_batch(self) -> int:
        """Examples that a device takes at once: of the stage that takes most."""
        largest = max(self.config.stages[name].batch_size for name in self.stages)
        return self.config.machine.micro_batch or max(1, largest // self.processes)

    @property
    def experts(self) -> int:
        """Of the pool in the last stage, which needs most."""
        return self.config.stage_names.index(self.stages[-1]) + 1


class Diagnosis(NamedTuple):
    """Facts as plain values, what keeps the run from working, and what could not be looked at."""

    facts: dict[str, Any]
    problems: tuple[Problem, ...]
    unchecked: tuple[Unchecked, ...] = ()
    warnings: tuple[str, ...] = ()
    """What works and is likely not what is wanted."""


def diagnose(request: DiagnosisRequest) -> Diagnosis:
    """Look at everything that can be told without loading weights or taking a step."""
    folder, base, problems, unchecked = find_base(request.config)
    facts: dict[str, Any] = {
        "config": request.config.name,
        "environment": environment(request.output, request.processes),
        "base": base,
    }
    shape, found = _find_shape(request.config, folder)
    problems += found
    known = folder if shape is None else shape.folder  # of a published base, that of its shape
    problems += cheap_problems(request.config, request.stages, known, request.processes)
    try:
        check_trackers(request.config.logging.trackers)
    except CologenError as error:
        problems.append(Problem("trackers", str(error)))
    if request.probe or (request.gpu is not None and request.gpu.is_here):
        problems += machine_problems(request.config)
    elif request.gpu is None:
        unchecked += [_of_another_machine(problem) for problem in machine_problems(request.config)]
    else:
        unchecked += unchecked_machine(request.config, request.gpu.name)
    data = data_facts(request.config, request.stages, shape)
    problems += data.problems
    unchecked += data.unchecked
    facts["data"] = data.card
    facts["stages"] = {name: _stage_facts(request, data, name) for name in request.stages}
    if shape is None:
        how = _how_to_get(request.config)
        sides = "whether the base reads sides of these sizes, which its VAE decides"
        why = "parameters, disk and memory, which depend on the configs of the base"
        unchecked += [Unchecked("picture size", sides, how), Unchecked("memory", why, how)]
    else:
        counts = count_parameters(shape, request.config.pool)
        facts["parameters"] = _parameter_facts(counts, request)
        problems += _disk(request, counts, facts)
        if data.sizes is None or any(problem.about == "picture size" for problem in problems):
            why = "memory of a step, since it is not known which size pictures would have"
            unchecked.append(Unchecked("memory", why, "mend what is named above, or give data.size"))
        else:
            facts["memory"], found = _memory(request, shape, counts, data.sizes)
            # Without a GPU, only a probe shows that the run is meant for this machine.
            if request.gpu is None and not request.probe:
                unchecked += [_of_another_machine(problem) for problem in found]
            else:
                problems += found
    warnings = base_warnings(request.config, folder)
    return Diagnosis(facts, tuple(dict.fromkeys(problems)), tuple(unchecked), tuple(warnings))


def _of_another_machine(problem: Problem) -> Unchecked:
    """What a machine without a GPU cannot do, and the machine that a run is meant for perhaps can."""
    why = f"what the machine that the run is meant for can do, since there is no GPU here: {problem.message}"
    return Unchecked(problem.about, why, "ask the doctor on that machine, or probe here (--probe)")


def _find_shape(config: RunConfig, folder: Path) -> tuple[BaseShape | None, list[Problem]]:
    """What the base is built of, where its configs are here or known."""
    name = config.base.path
    if not folder.exists() and name not in PUBLISHED and HUB_NAME.fullmatch(name):
        return None, []
    try:
        return find_shape(name, folder, config.base.max_text_tokens), []
    except CologenError as error:
        return None, [Problem("base", str(error))]


def find_base(config: RunConfig) -> tuple[Path, dict[str, Any], list[Problem], list[Unchecked]]:
    """Where the base is, without fetching it; what is wrong with it; and what is unknown without it."""
    folder, name = config.base_path, config.base.path
    if not folder.exists() and HUB_NAME.fullmatch(name):
        cached = try_to_load_from_cache(name, INDEX_FILE, revision=config.base.revision)
        if not isinstance(cached, str):
            where = "not here; train fetches it from the Hugging Face hub"
            why = "whether its files are whole, and whether you may fetch it, since it is not on this machine"
            unchecked = Unchecked("base", why, _how_to_get(config))
            return folder, {"path": name, "where": where}, [], [unchecked]
        folder = Path(cached).parent
    elif folder.exists() and config.base.revision is not None:
        return folder, {"path": name, "where": str(folder)}, [_no_revision(config, folder)], []
    facts = {"path": name, "where": str(folder)}
    if not folder.exists():
        return folder, facts, [Problem("base", f"there is no FLUX base at {folder}. {HOW_TO_GET_ONE}")], []
    return folder, facts, _base_problems(folder), []


def _how_to_get(config: RunConfig) -> str:
    name = config.base.path
    if HUB_NAME.fullmatch(name) and not config.base_path.exists():
        return f"fetch it (hf download {name}), then ask again"
    return "mend base.path, then ask again"


def _no_revision(config: RunConfig, folder: Path) -> Problem:
    message = (
        f"base.revision is {config.base.revision!r}, but {folder} is a folder on this machine, which has no "
        "revisions: leave it out (--set base.revision=null)."
    )
    return Problem("base", message)


def _base_problems(folder: Path) -> list[Problem]:
    """What is wrong with the files of a base, looked at without reading weights."""
    try:
        shape = read_shape(folder)
    except CologenError:  # told by those who read the configs
        return []
    bare = [part for part in shape.parts if not _has_weights(folder / part)]
    if bare:
        message = f"{folder} has no weights of {', '.join(bare)}: fetch the whole folder. {HOW_TO_GET_ONE}"
        return [Problem("base", message)]
    try:
        check_base(folder, LAYOUTS_OF_BASES[shape.family])
    except CologenError as error:
        return [Problem("base", str(error))]
    lost = [lacking for part in shape.parts for lacking in missing_shards(folder / part)]
    if not lost:
        return []
    more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
    message = (
        f"{folder} lacks {', '.join(map(str, lost[:3]))}{more}, which the index of its weights names: fetch "
        "the whole folder again."
    )
    return [Problem("base", message)]


def _has_weights(part: Path) -> bool:
    return any(file.suffix in (".safetensors", ".bin") for file in part.glob("*"))


def missing_shards(part: Path) -> list[Path]:
    """Files of weights that an index in a part's folder names and that are not there."""
    named: set[Path] = set()
    for index in part.glob("*.index.json"):
        files = read_json(index).get("weight_map")
        named |= {part / str(file) for file in files.values()} if isinstance(files, dict) else set()
    return sorted(file for file in named if not file.is_file())


def _parameter_facts(counts: Counts, request: DiagnosisRequest) -> dict[str, Any]:
    return {
        "sites": counts.sites,
        "experts": request.experts,
        "per_expert": counts.per_expert,
        "all_experts": request.experts * counts.per_expert,
        "routers": request.experts * counts.router_per_expert,
        "trained_at_once": trained(request.config, counts, request.experts),
        "base": counts.base,
    }


def _stage_facts(request: DiagnosisRequest, data: DataFacts, name: str) -> dict[str, Any]:
    stage = request.config.stages[name]
    known = {} if data.card is None else data.card["stages"].get(name, {})
    records = known.get("records") if known else "unknown"
    return {
        "steps": stage.steps,
        "batch_size": stage.batch_size,
        "examples": stage.steps * stage.batch_size,
        "records": "endless" if records is None else records,
        "epochs": stage.steps * stage.batch_size / records if isinstance(records, int) else None,
        "shares": known.get("shares", {}),
    }


def _disk(request: DiagnosisRequest, counts: Counts, facts: dict[str, Any]) -> list[Problem]:
    """Room for a pool of every stage, and for the stage in progress twice, since it is replaced at once."""
    one = (counts.per_expert + counts.router_per_expert) * FLOAT32
    finished = sum(one * (request.config.stage_names.index(name) + 1) for name in request.stages)
    needed = finished + 2 * (request.experts + 2) * one
    facts["environment"]["needed_disk_bytes"] = needed
    free = facts["environment"]["free_disk_bytes"]
    if needed <= free:
        return []
    message = (
        f"checkpoints of this run need about {needed / 1e9:.1f} GB, but {request.output} has "
        f"{free / 1e9:.1f} GB left: give another --output, or make room."
    )
    return [Problem("disk", message)]


def _memory(
    request: DiagnosisRequest, shape: BaseShape, counts: Counts, sizes: Bucket
) -> tuple[dict[str, Any], list[Problem]]:
    """Memory by part, beside what the device has; and what would make it fit."""
    sources = (sizes.source,) * sources_of(request.config, request.stages)
    load = load_of(
        request.config,
        request.micro_batch,
        sizes.target,
        request.experts,
        sources,
        processes=request.processes,
    )
    memory = estimate_memory(request.config, shape, counts, load)
    facts = memory_facts(memory, request.gpu)
    if request.gpu is None:
        return facts, _on_host(memory.total, host_bytes())
    if memory.total <= request.gpu.bytes:
        return facts, []
    change = what_would_fit(request.config, shape, counts, load, request.gpu.bytes)
    advice = (
        f"no setting makes it fit: take a larger GPU, or smaller pictures ({_sizes_setting(request.config)})."
        if change is None
        else f"--set {' '.join(change.settings)} would need {change.memory.total / 1e9:.1f} GB."
    )
    message = (
        f"a step needs about {memory.total / 1e9:.1f} GB (computed), but {request.gpu.name} has "
        f"{request.gpu.bytes / 1e9:.1f} GB; {advice}"
    )
    return facts, [Problem("memory", message)]


def _on_host(total: int, available: int) -> list[Problem]:
    """Whether a run would fit a machine without a GPU, which is where it would run if none is named."""
    if total <= available:
        return []
    message = (
        f"a step needs about {total / 1e9:.1f} GB (computed for a GPU), but this machine has no GPU, and "
        f"{available / 1e9:.1f} GB of its own memory: name the GPU that the run is meant for (--gpu or "
        "--gpu-memory)."
    )
    return [Problem("memory", message)]


def _sizes_setting(config: RunConfig) -> str:
    """The settings that say how large pictures are, and how many there are of an example."""
    fewer = ", or fewer sources, data.max_sources" if config.data.max_sources > 1 else ""
    return ("data.buckets" if config.data.buckets.on else "data.size") + fewer


def memory_facts(memory: Memory, gpu: Gpu | None) -> dict[str, Any]:
    """Memory by part, as plain values."""
    return {
        "micro_batch": memory.load.batch,
        "size": [memory.load.height, memory.load.width],
        "source_sizes": [list(size) for size in memory.load.sizes[1:]],
        "pixels": memory.load.pixels,
        "parts": [part._asdict() for part in memory.parts],
        "total_bytes": memory.total,
        "gpu": None if gpu is None else gpu.facts(),
        "host_bytes": host_bytes(),
        "tight": gpu is not None and is_tight(memory.total, gpu.bytes),
        "measured": False,
    }


def add_probe(facts: dict[str, Any], request: DiagnosisRequest, measured: Probe) -> None:
    """Put what was measured beside what was computed: hours of every stage, and the memory that was used."""
    for name in request.stages:
        stage = facts["stages"][name]
        at_once = request.micro_batch * request.processes
        steps = stage["steps"] * max(1, stage["batch_size"] // at_once)
        stage["seconds_per_micro_batch"] = measured.seconds[name]
        stage["hours"] = steps * measured.seconds[name] / 3600
    facts["measured_peak_bytes"] = measured.peak_bytes
