"""The estimate is what training really holds: the same step with real tensors, through the training code."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

import prw
from prw.config import PoolSettings
from recipes.cologen.caching.encoder import Encoder
from recipes.cologen.config.run import parse_config
from recipes.cologen.costs import activations
from recipes.cologen.costs.activations import Load, StepBytes, step_bytes
from recipes.cologen.costs.cuda_numerics import CudaNumerics, backward, quantise
from recipes.cologen.costs.live_bytes import LiveBytes
from recipes.cologen.costs.shapes import read_shape
from recipes.cologen.data.vocabulary import VOCABULARY
from recipes.cologen.flux.model import FluxModel
from recipes.cologen.flux.tiny import build_tiny_flux, save_tiny_flux
from recipes.cologen.training.input.batches import Batch
from recipes.cologen.training.step import TrainedModel, batch_loss

LEAST, MOST_SAVED, MOST_HELD = 0.99, 1.08, 1.18
"""Bounds of estimate / real. Without numbers, experts are computed by plain operations, which hold more than
the kernels do, the more so the larger the rank is beside the width: here 1/16, in FLUX.1-dev 1/24."""
POOL = PoolSettings(rank=2, kernel="dense")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], Path]:
    """Tiny bases by their numbers of double and single blocks."""
    found = {}
    for doubles, singles in ((1, 2), (3, 4)):
        folder = tmp_path_factory.mktemp(f"base_{doubles}_{singles}")
        model = build_tiny_flux(
            VOCABULARY,
            width=32,
            heads=2,
            axes=(4, 6, 6),
            text_width=16,
            double_blocks=doubles,
            single_blocks=singles,
            guidance_embeds=doubles == 1,
        )
        save_tiny_flux(model, folder, torch.float32)
        found[doubles, singles] = folder
    return found


def measured(base: Path, load: Load) -> StepBytes:
    """A real step through the training code; what autograd saves is counted here, by storage."""
    config = parse_config(
        {"name": "test", "base": {"path": str(base)}, "flow": {"source_timestep": load.source_timestep}}
    )
    model = FluxModel.load(base, load.dtype)
    quantise(model.transformer, load.quantisation)
    weave = prw.inject(model.transformer, target="kv", **POOL.model_dump())
    for number in range(load.experts):
        weave.add_expert(f"expert_{number}")
    model.transformer.train()
    if load.checkpointing:
        model.transformer.enable_gradient_checkpointing()
    for parameter in weave.trainable_parameters():
        parameter.grad = torch.zeros_like(parameter)
    pictures = torch.randint(0, 256, (load.batch, 3, load.height, load.width), dtype=torch.uint8)
    words = next(iter(VOCABULARY))
    sources = [pictures.new_zeros(load.batch, 3, *size) for size in load.sizes[1:]]
    batch = Batch(
        sources[0], pictures, (words,) * load.batch, tuple(range(load.batch)), further=tuple(sources[1:])
    )
    mixed = load.dtype == torch.bfloat16
    AcceleratorState._reset_state(reset_partial_state=True)
    trained = TrainedModel(
        model,
        weave,
        Accelerator(mixed_precision="bf16" if mixed else "no", cpu=True),
        config,
        Encoder(model, model.device),
    )
    known = {tensor.untyped_storage().data_ptr() for tensor in weights_of(model)}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in known:
            kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with CudaNumerics(), LiveBytes(weights_of(model)) as live:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss, _ = batch_loss(trained, config.stages["grounding"], batch)
        saved = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
        kept.clear()
        backward(loss)
    AcceleratorState._reset_state(reset_partial_state=True)
    return StepBytes(0, saved, live.peak)


def weights_of(model: FluxModel) -> list[torch.Tensor]:
    weights = [weight for module in model.modules() for weight in (*module.parameters(), *module.buffers())]
    return weights + [weight.grad for weight in weights if weight.grad is not None]


F32, BF16 = torch.float32, torch.bfloat16
GRID = [
    ((1, 2), Load(3, 36, 20, 3, BF16, False, "zero")),
    ((1, 2), Load(2, 32, 28, 2, BF16, True, "same")),
    ((3, 4), Load(2, 20, 36, 2, F32, False, "same")),
    ((3, 4), Load(1, 36, 24, 3, F32, True, "zero")),
    ((1, 2), Load(2, 20, 36, 2, F32, False, "same", ((32, 16), (24, 28), (24, 28)))),
    ((3, 4), Load(1, 16, 24, 2, BF16, True, "zero", ((40, 32), (40, 32)))),
    ((1, 2), Load(2, 36, 20, 2, BF16, False, "same", (), "nf4")),
    ((3, 4), Load(1, 24, 28, 3, BF16, True, "same", (), "int8")),
]


@pytest.mark.parametrize(("depth", "load"), GRID)
def test_the_estimate_is_what_a_real_step_holds(bases, depth, load):
    estimate = step_bytes(read_shape(bases[depth]), POOL, load)
    real = measured(bases[depth], load)
    assert LEAST * real.saved <= estimate.saved <= MOST_SAVED * real.saved
    assert LEAST * real.training <= estimate.training <= MOST_HELD * real.training


def test_offloaded_encoders_keep_what_they_encode_and_validation_is_traced_where_there_is_one(bases) -> None:
    shape, load = read_shape(bases[1, 2]), Load(2, 16, 24, 2, BF16, True)
    plain = step_bytes(shape, POOL, load)
    assert (plain.waiting, plain.validation) == (0, 0)
    ahead = step_bytes(shape, POOL, load._replace(share=10, ahead=True))
    assert ahead == plain._replace(waiting=ahead.waiting)
    text, channels, tokens = shape.max_text_tokens * 16 + 16, 48, 4 * 6
    # Embeddings and source in bfloat16, noisy and wanted tokens in float32, of the eight that wait.
    assert ahead.waiting == 8 * (2 * text + 2 * tokens * channels + 8 * tokens * channels)
    drawn = [step_bytes(shape, POOL, load._replace(validated=number)).validation for number in (2, 4)]
    assert 0 < drawn[0] < drawn[1] and plain.encoding <= drawn[0]


def test_bytes_alive_at_once_are_counted_by_storage() -> None:
    old = torch.zeros(1000)
    with LiveBytes([old]) as live:
        first = torch.zeros(10)
        second = first.view(2, 5)
        old.view(10, 100)
        assert live.now == 40
        del first
        assert live.now == 40
        del second
        assert (live.now, live.peak) == (0, 40)
        torch.zeros(5)
    assert live.peak == 40


def test_a_step_is_traced_once_for_the_same_base_pool_and_load(bases, monkeypatch):
    traced = []
    original = activations.encode
    monkeypatch.setattr(
        activations, "encode", lambda shape, load: traced.append(load) or original(shape, load)
    )
    activations._step_bytes.cache_clear()
    load = Load(1, 16, 16, 1)
    first = step_bytes(read_shape(bases[1, 2]), POOL, load)
    assert step_bytes(read_shape(bases[1, 2]), POOL, load) == first and len(traced) == 1
    step_bytes(read_shape(bases[3, 4]), POOL, load)
    step_bytes(read_shape(bases[1, 2]), POOL.model_copy(update={"rank": 4}), load)
    assert len(traced) == 3
