"""Stages and their order, and how a pool is made to match a stage."""

from prw.curriculum.curriculum import Curriculum
from prw.curriculum.stages import Stage

__all__ = ["Curriculum", "Stage"]
