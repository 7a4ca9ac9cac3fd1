"""What a Trainer has to agree with before it trains a stage: arguments, model, optimiser, step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from peft import PeftModel
from torch import nn

from prw.curriculum import Stage
from prw.errors import CurriculumError, UnsupportedError, first_few
from prw.tuner import pool_layers, trainable_parameters
from prw.weave import Weave


def check_arguments(args: Any, wanted: Mapping[str, Any], stage: Stage) -> None:
    """Refuse a Trainer with other arguments than the stage's.

    Raises:
        CurriculumError: names each.
    """
    wrong = [
        f"{name}={getattr(args, name)!r}, not {value!r}"
        for name, value in wanted.items()
        if getattr(args, name) != value
    ]
    if wrong:
        raise CurriculumError(
            f"this Trainer does not train stage {stage.name!r}: it has {'; '.join(wrong)}. Make one Trainer "
            "per stage, with TrainingArguments(**callback.arguments, ...)."
        )


def check_step(step: int, done: int, stage: Stage) -> None:
    """Refuse a Trainer that begins elsewhere than the pool is.

    Raises:
        CurriculumError: says where both are.
    """
    if step != done:
        raise CurriculumError(
            f"the pool has {done} steps of stage {stage.name!r} behind it, and the Trainer begins at step "
            f"{step}. Call trainer.train(resume_from_checkpoint=callback.checkpoint) inside "
            "`for stage in callback.stages(resume=True)`."
        )


def check_model(ours: nn.Module, trained: nn.Module) -> None:
    """Refuse a Trainer of another model.

    Raises:
        CurriculumError: names both.
    """
    if not any(module is ours for module in trained.modules()):
        raise CurriculumError(
            f"the Trainer's model ({type(trained).__name__}) does not contain the weave's "
            f"({type(ours).__name__}), so the loss could not be added. Give both the same model; after "
            "get_peft_model that is what it returned: prw.Weave(peft_model)."
        )


def check_alone(model: nn.Module, weave: Weave) -> None:
    """Refuse to train anything beside the pool: it would be in no checkpoint, and gone after a break.

    Raises:
        UnsupportedError: names some of it.
    """
    layers = pool_layers(weave.model, weave.adapter)
    ours = {id(parameter) for parameter in trainable_parameters(layers, weave.adapter, weave.config)}
    others = [n for n, p in model.named_parameters() if p.requires_grad and id(p) not in ours]
    if others:
        raise UnsupportedError(
            f"{len(others)} parameters train beside the pool ({first_few(others)}), and the "
            "checkpoints of PrwCallback hold the pool alone, so a resumed run would lose them. Freeze them "
            "(requires_grad_(False)), or walk curriculum.stages(weave) in a loop that saves them too."
        )


def check_saving(args: Any, model: nn.Module) -> None:
    """Refuse what a Trainer would only find out at its first checkpoint, or at the end of the stage.

    Raises:
        UnsupportedError: says what, and what to do.
    """
    if isinstance(model, PeftModel) or not getattr(model, "_hf_peft_config_loaded", False):
        return
    active = cast(Any, model).active_adapters()
    if len(active) > 1:
        raise UnsupportedError(
            f"transformers saves a model with one active adapter, and {', '.join(active)} are active. Merge "
            "the others into the base, or wrap the model with get_peft_model(model, prw.PrwConfig(...))."
        )
    if args.load_best_model_at_end:
        raise UnsupportedError(
            "load_best_model_at_end looks for the whole model's weights, and the checkpoints hold the pool "
            "alone. Leave it off, or wrap the model with get_peft_model(model, prw.PrwConfig(...))."
        )


def check_optimizer(optimizer: Any, model: nn.Module, weave: Weave, stage: Stage) -> None:
    """Refuse an optimiser that does not hold all that trains of the pool, as one of an earlier stage.

    An optimiser that holds copies of its own, as DeepSpeed's, cannot be looked at and is let through.

    Raises:
        CurriculumError: says how many parameters are missing.
    """
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    missing = [parameter for parameter in weave.trainable_parameters() if id(parameter) not in held]
    if missing and (not held or any(id(parameter) in held for parameter in model.parameters())):
        raise CurriculumError(
            f"{len(missing)} parameters of the expert {stage.name!r} are not in the Trainer's optimiser, so "
            "they would not train. A Trainer keeps the optimiser of its first train(): make one Trainer per "
            "stage, inside `for stage in callback.stages()`, and pass it no optimiser made before."
        )
