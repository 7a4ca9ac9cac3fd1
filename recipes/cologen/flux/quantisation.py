"""Settings of diffusers for a transformer whose frozen weights are kept in 4 or 8 bits."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import BitsAndBytesConfig, TorchAoConfig
from diffusers.utils import is_bitsandbytes_available, is_torchao_available

from recipes.cologen.config.model import Quantisation
from recipes.cologen.errors import MachineError


def quantization_config(quantisation: Quantisation, dtype: torch.dtype) -> Any:
    """What `from_pretrained` takes as `quantization_config`.

    Norms, biases and embeddings that are no linear layers keep `dtype`, in which products are computed too.

    Raises:
        MachineError: the package is missing, or the GPU that bitsandbytes needs under diffusers.
    """
    if quantisation in ("nf4", "int8"):
        _check(quantisation, "bitsandbytes", is_bitsandbytes_available())
        if not torch.cuda.is_available():
            raise MachineError(
                f"base.quantisation={quantisation} needs a GPU: diffusers quantises with bitsandbytes only "
                "there. On a CPU use torchao_int8 or torchao_fp8, or leave it out."
            )
        if quantisation == "int8":
            return BitsAndBytesConfig(load_in_8bit=True)
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_use_double_quant=True,
        )
    _check(quantisation, "torchao", is_torchao_available())
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig

    kind = Int8WeightOnlyConfig if quantisation == "torchao_int8" else Float8WeightOnlyConfig
    return TorchAoConfig(kind())


def _check(quantisation: str, package: str, there: bool) -> None:
    if not there:
        raise MachineError(
            f"base.quantisation={quantisation} needs {package}, which is not installed: pip install {package}"
        )
