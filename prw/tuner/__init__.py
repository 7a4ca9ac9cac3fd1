"""PRW as a PEFT method: the one package that knows PEFT's internals. Importing it registers the method."""

from prw.tuner.config import PrwConfig, register
from prw.tuner.growth import (
    freeze_newest,
    grow,
    holds,
    pool_of,
    refresh_training,
    remove,
    rename,
    trainable_parameters,
)
from prw.tuner.injection import (
    adapters_with_pools,
    changed_since,
    find_pool,
    model_for_pool,
    note_beside,
    parameters_beside,
    pool_layers,
    put_in,
    refuse_no_model,
    take_out,
    trained_before,
)
from prw.tuner.layer import Layers, PrwLinear, project
from prw.tuner.merging import merge
from prw.tuner.mha import PrwAttention
from prw.tuner.model import PrwModel
from prw.tuner.module_paths import (
    PEFT_PREFIX,
    base_path,
    inner_model,
)
from prw.tuner.targets import excluded_paths, passed_over, passed_over_note, refuse_outside, rename_saved

register(PrwModel)

__all__ = [
    "PEFT_PREFIX",
    "Layers",
    "PrwAttention",
    "PrwConfig",
    "PrwLinear",
    "PrwModel",
    "adapters_with_pools",
    "base_path",
    "changed_since",
    "excluded_paths",
    "find_pool",
    "freeze_newest",
    "grow",
    "holds",
    "inner_model",
    "merge",
    "model_for_pool",
    "note_beside",
    "parameters_beside",
    "passed_over",
    "passed_over_note",
    "pool_layers",
    "pool_of",
    "project",
    "put_in",
    "refresh_training",
    "refuse_no_model",
    "refuse_outside",
    "remove",
    "rename",
    "rename_saved",
    "take_out",
    "trainable_parameters",
    "trained_before",
]
