"""Makes PEFT know the method PRW, through its own register_peft_method.

PEFT accepts only methods that its enum `PeftType` lists and has no plug-in point, so the member is added
first. Both happen on `import prw`, which must therefore come before any loader that meets a PRW folder.
"""

from __future__ import annotations

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import PeftType, register_peft_method

from prw.errors import UnsupportedError

METHOD = "PRW"


def peft_type() -> PeftType:
    """Give PEFT's enum member for PRW, adding it the first time.

    Raises:
        UnsupportedError: if this PEFT's enum cannot be extended; says which versions can.
    """
    if METHOD not in PeftType.__members__:
        member = str.__new__(PeftType, METHOD)
        member._name_, member._value_ = METHOD, METHOD
        PeftType._member_names_.append(METHOD)
        PeftType._member_map_[METHOD] = member
        PeftType._value2member_map_[METHOD] = member
        type.__setattr__(PeftType, METHOD, member)
    if PeftType(METHOD) is not PeftType[METHOD] or METHOD not in list(PeftType):
        raise UnsupportedError(
            "prw could not register itself with this version of peft: its PeftType is no plain str enum any "
            "more. prw works with peft 0.21; please report the version you have."
        )
    return PeftType[METHOD]


def register(config_cls: type[PeftConfig], model_cls: type[BaseTuner]) -> None:
    """Register the method with PEFT; a second call changes nothing."""
    if peft_type() not in PEFT_TYPE_TO_TUNER_MAPPING:
        register_peft_method(name=METHOD.lower(), config_cls=config_cls, model_cls=model_cls)
