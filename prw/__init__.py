"""prw: routed LoRA experts on key and value projections, and a curriculum that grows them.

Importing prw registers the method PRW with PEFT, so that PEFT, transformers and diffusers can load its
folders.
"""

from importlib.metadata import PackageNotFoundError, version

from prw import tuner as _tuner  # noqa: F401  # first, since it checks the version of PEFT
from prw.config import PoolSettings
from prw.curriculum import Curriculum, Stage
from prw.errors import (
    ConfigError,
    CurriculumError,
    PoolError,
    PrwError,
    RoutingError,
    StorageError,
    TargetError,
    UnsupportedError,
)
from prw.integrations import accumulation as _accumulation  # noqa: F401  # registers itself
from prw.integrations.diffusers import load_pipeline, save_pipeline
from prw.integrations.plotting import plot_routing
from prw.losses import load_balance_loss, router_z_loss, veteran_loss
from prw.routing import Routing
from prw.tuner import PrwConfig, project
from prw.weave import Weave, inject, load

try:
    __version__ = version("prw")
except PackageNotFoundError:  # a checkout on the path that was never installed
    __version__ = "0+checkout"

__all__ = [
    "ConfigError",
    "Curriculum",
    "CurriculumError",
    "PoolError",
    "PoolSettings",
    "PrwConfig",
    "PrwError",
    "Routing",
    "RoutingError",
    "Stage",
    "StorageError",
    "TargetError",
    "UnsupportedError",
    "Weave",
    "inject",
    "load",
    "load_balance_loss",
    "load_pipeline",
    "plot_routing",
    "project",
    "router_z_loss",
    "save_pipeline",
    "veteran_loss",
]
