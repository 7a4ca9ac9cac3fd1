"""A micro-batch is queued without waiting for the device: what travels there is pinned and not waited for."""

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import prw
from recipes.cologen.caching.encoder import Encoder
from recipes.cologen.flux import ImageTokens, TextTokens, transfer
from recipes.cologen.flux.tiny import build_tiny_flux
from recipes.cologen.flux.transfer import to_device
from recipes.cologen.tools.random_flux2 import build_random_flux2
from recipes.cologen.training.input import batches as loading
from recipes.cologen.training.input import filling
from recipes.cologen.training.step import batch_loss
from tests.recipes.cologen.training.test_step import make_trained, some_batches, stage
from tests.waiting import Waits

__all__ = ["make_trained"]

BASES = {
    "FLUX.1": lambda: build_tiny_flux(["a", "red"], width=16, heads=2, axes=(2, 2, 4), text_width=16),
    "FLUX.2": lambda: build_random_flux2(double_blocks=2, single_blocks=2, axes=(2, 2, 2, 2)),
}
META = torch.device("meta")


@pytest.mark.parametrize("way", ["same", "zero"])
@pytest.mark.parametrize("base", BASES)
def test_forward_and_backward_of_a_base_wait_for_nothing(base, way):
    model = BASES[base]()
    width, text_width = model.transformer.config.in_channels, model.transformer.config.joint_attention_dim
    model.transformer.to(META)
    weave = prw.inject(model.transformer, target="kv", rank=4, experts=["a", "b"], kernel="dense")
    model.transformer.train()
    model.transformer.enable_gradient_checkpointing()
    noise, source = (ImageTokens(torch.randn(2, 6, width, device=META), 2, 3) for _ in range(2))
    pooled = getattr(model.transformer.config, "pooled_projection_dim", 0)
    text = TextTokens(torch.randn(2, 5, text_width, device=META), torch.randn(2, pooled, device=META))
    timestep = torch.rand(2, device=META)
    with Waits() as waits, weave.record() as routing:
        velocity = model.velocity(noise, timestep, text, source, way)
        (velocity.square().mean() + prw.veteran_loss(routing, rho=0.5, alpha=0.5)).backward()
    assert waits.found == []


@pytest.mark.parametrize("way", ["same", "zero"])
@pytest.mark.parametrize("replayed", [False, True])
def test_a_micro_batch_travels_by_to_device_alone(make_trained, way, replayed):
    trained = make_trained("pool.kernel=dense", f"flow.source_timestep={way}")
    for part in trained.model.modules():
        part.to(META)
    trained = replace(
        trained,
        accelerator=SimpleNamespace(device=META, autocast=nullcontext),
        encoder=Encoder(trained.model, META),
    )
    batch = some_batches()[0]._replace(replayed=(replayed, False, replayed, False))
    with Waits(allowed=("to_device",)) as waits:
        loss, _ = batch_loss(trained, stage(trained), batch)
        loss.backward()
    assert waits.found == []


class Pinned:
    """A host tensor, as far as a copy to a GPU can tell."""

    def __init__(self, is_cpu=True):
        self.is_cpu, self.calls = is_cpu, []

    def pin_memory(self):
        self.calls.append("pinned")
        return self

    def to(self, device, non_blocking=False):
        self.calls.append((device.type, non_blocking))
        return self


def test_a_copy_to_a_gpu_is_pinned_and_not_waited_for_and_others_are():
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert to_device(Pinned(), gpu).calls == ["pinned", ("cuda", True)]
    assert to_device(Pinned(), cpu).calls == [("cpu", False)]
    assert to_device(Pinned(is_cpu=False), cpu).calls == [("cpu", False)], "its numbers may be read at once"
    assert to_device(Pinned(is_cpu=False), gpu).calls == [("cuda", False)]
    value = torch.randn(3)
    assert to_device(value, cpu) is value


@pytest.mark.parametrize("gpu", [True, False])
def test_batches_are_pinned_by_their_loader_where_there_is_a_gpu(monkeypatch, gpu):
    asked = []

    class Loader(loading.DataLoader):
        def __init__(self, *args, pin_memory, **settings):
            asked.append(pin_memory)
            super().__init__(*args, **settings)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    for module in (loading, filling):
        monkeypatch.setattr(module, "DataLoader", Loader)
    some_batches()
    records = filling.FixedExamples(None, 0, "grounding", None)
    filling.fill(SimpleNamespace(flush=lambda: None, stopped=lambda: None), records)
    assert asked == [gpu, gpu]
    assert transfer.wants_pinned() is gpu


def test_a_batch_keeps_its_kind_when_it_is_pinned(monkeypatch):
    from torch.utils.data._utils.pin_memory import pin_memory

    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self, *device: pinned.append(self.shape) or self)
    batch = some_batches()[0]
    again = pin_memory(batch)
    assert type(again) is type(batch) and again.prompts == batch.prompts and again.seeds == batch.seeds
    assert again.keys == batch.keys and pinned == [batch.source.shape, batch.target.shape]
