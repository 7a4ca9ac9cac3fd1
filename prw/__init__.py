"""prw: routed LoRA experts on key and value projections, and a curriculum that grows them.

Importing prw registers the method PRW with PEFT, so that PEFT, transformers and diffusers can load its
folders.
"""

from importlib.metadata import PackageNotFoundError, version

from prw import tuner as _tuner  # noqa: F401  # first, since it looks whether this PEFT will do
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
from prw.integrations.diffusers import load_pipeline, save_pipeline
from prw.layers import SiteRecord
from prw.losses import veteran_loss
from prw.routing import Routing, RoutingDecision
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
    "RoutingDecision",
    "RoutingError",
    "SiteRecord",
    "Stage",
    "StorageError",
    "TargetError",
    "UnsupportedError",
    "Weave",
    "inject",
    "load",
    "load_pipeline",
    "project",
    "save_pipeline",
    "veteran_loss",
]
