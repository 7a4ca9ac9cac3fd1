"""The routed projection: every item through its chosen expert, behind one signature with several backends."""

from prw.kernels.dense import dense
from prw.kernels.reference import reference
from prw.kernels.select import KERNELS, Kernel, select

__all__ = ["KERNELS", "Kernel", "dense", "reference", "select"]
