"""Brings the pool that a model has forward to a saved one: its experts, weights and ledger."""

from __future__ import annotations

from pathlib import Path

from prw.errors import CurriculumError, StorageError
from prw.storage import SavedPool, fill, read_folder
from prw.tuner import grow, pool_layers, refresh_training
from prw.weave import Weave


def catch_up(weave: Weave, path: Path) -> None:
    """Add the experts that a saved pool has more, and take over its weights and what it says of its stages.

    Args:
        weave: A pool whose experts are the saved one's first ones; usually an empty one.
        path: Folder of the saved pool.

    Raises:
        StorageError: if the folder is missing, damaged, or does not fit the model.
        CurriculumError: if the pool has other experts or settings.
    """
    saved = read_folder(path)
    check_fit(weave, saved, path)
    layers, config = pool_layers(weave.model, weave.adapter), weave.config
    frozen, more = config.newest_frozen, saved.config.experts[len(weave.experts) :]
    for name in more:
        grow(layers, weave.adapter, config, name, ranks=saved.config.expert_ranks.get(name))
    try:  # other modules that were trained with the pool are for PEFT to load
        fill(layers, weave.adapter, {name: value for name, value in saved.weights.items() if ".prw_" in name})
    except StorageError:
        for name in more:
            weave.remove_expert(name)
        config.newest_frozen = frozen
        refresh_training(layers, weave.adapter, config)
        raise
    config.imported, config.stages = list(saved.config.imported), dict(saved.config.stages)
    config.trained_beside = dict(saved.config.trained_beside)
    config.newest_frozen = saved.config.newest_frozen
    refresh_training(layers, weave.adapter, config)


def check_fit(weave: Weave, saved: SavedPool, path: Path) -> None:
    """Refuse a saved pool that is no later state of this one.

    Raises:
        CurriculumError: names both pools' experts or settings.
    """
    theirs, ours = tuple(saved.config.experts), weave.experts
    if theirs[: len(ours)] != ours:
        raise CurriculumError(
            f"the pool in {path} has the experts {', '.join(theirs) or 'none'}, and the model's pool begins "
            f"otherwise: {', '.join(ours)}. Start from an empty pool, or from one that was saved earlier."
        )
    if saved.config.settings() != weave.settings:
        raise CurriculumError(
            f"the pool in {path} has other settings than the model's: {saved.config.settings()}, and "
            f"{weave.settings}. Inject with the settings of the saved pool."
        )
