"""PRW as a PEFT method: the one room that knows PEFT's internals. Importing it registers the method."""

from prw.tuner.checks import check_peft  # first: what follows needs what it looks for
from prw.tuner.config import PrwConfig
from prw.tuner.growth import (
    Layers,
    freeze_newest,
    grow,
    holds,
    pool_of,
    refresh_training,
    remove,
    rename,
    trainable_modules,
    trainable_parameters,
)
from prw.tuner.injection import (
    TrainedBefore,
    find_pool,
    pool_layers,
    put_in,
    refuse_no_model,
    take_out,
    trained_before,
)
from prw.tuner.layer import PrwLinear
from prw.tuner.merging import merge
from prw.tuner.mha import PrwAttention
from prw.tuner.model import PrwModel
from prw.tuner.outside import changed_since, note_beside, shown, trained_beside
from prw.tuner.project import project
from prw.tuner.registration import register
from prw.tuner.resolving import passed_over, passed_over_note, refuse_outside
from prw.tuner.targets import limited
from prw.tuner.wrapping import PEFT_PREFIX, inner_model, plain_path, refuse_fixed

register(PrwConfig, PrwModel)

__all__ = [
    "PEFT_PREFIX",
    "Layers",
    "PrwAttention",
    "PrwConfig",
    "PrwLinear",
    "PrwModel",
    "TrainedBefore",
    "changed_since",
    "check_peft",
    "find_pool",
    "freeze_newest",
    "grow",
    "holds",
    "inner_model",
    "limited",
    "merge",
    "note_beside",
    "passed_over",
    "passed_over_note",
    "plain_path",
    "pool_layers",
    "pool_of",
    "project",
    "put_in",
    "refresh_training",
    "refuse_fixed",
    "refuse_no_model",
    "refuse_outside",
    "remove",
    "rename",
    "shown",
    "take_out",
    "trainable_modules",
    "trainable_parameters",
    "trained_before",
    "trained_beside",
]
