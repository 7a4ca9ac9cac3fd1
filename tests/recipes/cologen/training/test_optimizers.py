"""The optimisers that can be chosen, and the average of the newest expert: kept, resumed, validated."""

import builtins
import io
import json
from importlib.util import find_spec

import pytest
import torch

from recipes.cologen.config.model import OptimizerSettings
from recipes.cologen.errors import MachineError
from recipes.cologen.training import loop
from recipes.cologen.training.optimizers import AVERAGE, make_average, make_optimizer
from recipes.cologen.training.validation import schedule as validating
from tests.recipes.cologen.training.conftest import make_config

needs_bitsandbytes = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
NAMES = ["adamw", "adamw_fused", pytest.param("adamw_8bit", marks=needs_bitsandbytes)]


def trained(name, steps=4, parameter=None, optimizer=None, **settings):
    """A parameter after some steps on fixed gradients, and its optimiser and average."""
    chosen = OptimizerSettings(name=name, **settings)
    parameter = parameter if parameter is not None else torch.nn.Parameter(torch.ones(80, 80))
    optimizer = optimizer or make_optimizer([parameter], chosen)
    average = make_average(optimizer, chosen)
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    for step in range(steps):
        parameter.grad = torch.randn(80, 80, generator=torch.Generator().manual_seed(step))
        optimizer.step()
    return parameter, optimizer, average


@pytest.mark.parametrize("name", NAMES)
def test_every_optimiser_takes_the_steps_of_adamw_with_the_settings(name):
    settings = {"weight_decay": 0.5, "betas": (0.8, 0.9)}
    expected, _, _ = trained("adamw", **settings)
    found, optimizer, _ = trained(name, **settings)
    # Eight bits for a moment of 6,400 numbers: a few steps of 0.01 differ by a few per cent of a step.
    torch.testing.assert_close(found, expected, rtol=0, atol=0.01 if name == "adamw_8bit" else 1e-6)
    state = optimizer.state[found]
    assert (torch.uint8 in {value.dtype for value in state.values() if torch.is_tensor(value)}) == (
        name == "adamw_8bit"
    )


def test_the_default_is_plain_adamw_as_it_always_was():
    optimizer = make_optimizer([torch.nn.Parameter(torch.ones(2))], OptimizerSettings())
    assert type(optimizer) is torch.optim.AdamW and optimizer.defaults["fused"] is None
    assert AVERAGE not in optimizer.state_dict()


def test_a_missing_bitsandbytes_is_named(monkeypatch):
    original = builtins.__import__

    def absent(name, *arguments, **options):
        if name.startswith("bitsandbytes"):
            raise ImportError("no such module")
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(MachineError, match=r"adamw_8bit needs bitsandbytes.*adamw_fused"):
        trained("adamw_8bit", steps=0)


def test_the_average_is_that_of_the_weights_after_each_step():
    parameter = torch.nn.Parameter(torch.ones(80, 80))
    expected = parameter.detach().clone()
    _, optimizer, average = trained("adamw", steps=0, parameter=parameter, ema_decay=0.3)
    for step in range(1, 6):
        parameter.grad = torch.full_like(parameter, float(step))
        optimizer.step()
        decay = min(0.3, (1 + step - 1) / (10 + step - 1)) if step > 1 else 0.0
        expected = decay * expected + (1 - decay) * parameter.detach()
    weights = parameter.detach().clone()
    with average.in_place():
        torch.testing.assert_close(parameter.detach(), expected)
        assert not torch.equal(parameter, weights)
    assert torch.equal(parameter, weights)
    average.keep()
    torch.testing.assert_close(parameter.detach(), expected)


@pytest.mark.parametrize("name", NAMES)
def test_an_average_goes_on_with_the_state_of_its_optimiser(name):
    whole, _, average = trained(name, steps=4, ema_decay=0.5)
    average.keep()

    half, optimizer, _ = trained(name, steps=2, ema_decay=0.5)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    again = torch.nn.Parameter(half.detach().clone())
    _, resumed, average = trained(name, steps=0, parameter=again, ema_decay=0.5)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for step in range(2, 4):
        again.grad = torch.randn(80, 80, generator=torch.Generator().manual_seed(step))
        resumed.step()
    average.keep()
    assert torch.equal(again, whole)


def pool_of(folder, stage):
    return (folder / "checkpoints" / stage / "prw/adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_with_an_average_ends_alike_bit_for_bit(name, base_path, run, stop_at, tmp_path):
    config = make_config(base_path, f"optimizer.name={name}", "optimizer.ema_decay=0.9", "pool.rank=40")
    run(config, tmp_path / "through", "..grounding")
    stop_at(8)
    assert run(config, tmp_path / "halted", "..grounding").stopped.step == 2
    run(config, tmp_path / "halted", "..grounding")
    for stage in ("inpainting", "grounding"):
        assert pool_of(tmp_path / "through", stage) == pool_of(tmp_path / "halted", stage)


def test_the_average_is_validated_kept_and_grown_on(base_path, run, tmp_path, monkeypatch):
    """Its stage ends with other weights than training did, and was scored on those that are kept."""
    scored, last = [], []
    original_score, original_step = validating.evaluate_task, loop.train_step

    def score(model, weave, *arguments, **options):
        scored.append([value.detach().clone() for value in weave.trainable_parameters()])
        return original_score(model, weave, *arguments, **options)

    def step(trained, *arguments):
        measured = original_step(trained, *arguments)
        last[:] = [value.detach().clone() for value in trained.weave.trainable_parameters()]
        return measured

    monkeypatch.setattr(validating, "evaluate_task", score)
    monkeypatch.setattr(loop, "train_step", step)
    run(make_config(base_path, "optimizer.ema_decay=0.9"), tmp_path / "averaged", "inpainting")
    kept = pool_of(tmp_path / "averaged", "inpainting")
    assert kept_tensors(kept) == raw(scored[-1]) != raw(last)
    run(make_config(base_path), tmp_path / "plain", "inpainting")
    assert kept_tensors(pool_of(tmp_path / "plain", "inpainting")) == raw(last) == raw(scored[-1])


def raw(tensors):
    return {value.numpy().tobytes() for value in tensors}


def kept_tensors(content):
    from safetensors.torch import load

    return raw(load(content).values())


def test_the_average_is_part_of_what_a_run_is(base_path):
    plain, averaged = make_config(base_path), make_config(base_path, "optimizer.ema_decay=0.9")
    assert plain.fingerprint() != averaged.fingerprint()
    assert json.loads(json.dumps(plain.model_dump(mode="json")))["optimizer"]["ema_decay"] is None
