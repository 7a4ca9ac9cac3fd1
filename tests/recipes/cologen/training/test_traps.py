"""Traps that FLUX trainers fell into (T1 to T15), as far as no other test holds the recipe off them.

The whole list, with the test of each, is in docs/recipes/many-gpus.md.
"""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

import prw
from recipes.cologen.caching.encoder import Encoder
from recipes.cologen.config.training import DropoutSettings
from recipes.cologen.data.record import Pair, Record
from recipes.cologen.data.sampler import BatchSampler, SampleIndex
from recipes.cologen.data.world import World
from recipes.cologen.errors import SourceStreamError, TooManyBrokenError
from recipes.cologen.flux.tokens import ImageTokens
from recipes.cologen.runs.loading import load_base
from recipes.cologen.training.input.batches import Examples, batches
from tests.recipes.cologen.training.conftest import make_config
from tests.recipes.cologen.training.test_step import some_batches

ROOT = Path(__file__).resolve().parents[4]
NONE = DropoutSettings(text=0, source=0)


def woven(base_path, *settings):
    config = make_config(base_path, *settings)
    model = load_base(config, torch.device("cpu"))
    return model, prw.inject(model.transformer, experts=["inpainting"], **config.pool.model_dump())


def test_t1_a_base_in_16_bits_has_experts_gates_and_moments_in_32(base_path):
    from recipes.cologen.training.optimizers import make_optimizer
    from recipes.cologen.training.step import TrainedModel, train_step

    config = make_config(base_path, "base.dtype=bfloat16")
    model, weave = woven(base_path, "base.dtype=bfloat16")
    weave.add_expert("grounding")
    assert {value.dtype for value in weave.trainable_parameters()} == {torch.float32}
    assert model.transformer.dtype == torch.bfloat16
    optimizer = make_optimizer(weave.trainable_parameters(), config.optimizer)
    trained = TrainedModel(model, weave, Accelerator(), config, Encoder(model, model.device))
    train_step(trained, config.stages["grounding"], 1, optimizer, some_batches())
    gradients = [value.grad.dtype for value in weave.trainable_parameters() if value.grad is not None]
    moments = [value["exp_avg"].dtype for value in optimizer.state_dict()["state"].values()]
    assert {*gradients, *moments} == {torch.float32}


def test_t2_fusing_projections_with_a_pool_attached_is_refused(base_path):
    model, _ = woven(base_path)
    with pytest.raises(prw.UnsupportedError, match="fus"):
        model.transformer.fuse_qkv_projections()


def test_t3_a_processor_that_knows_nothing_of_the_source_is_refused(base_path):
    from diffusers.models.transformers.transformer_flux import FluxAttnProcessor

    model, _ = woven(base_path)
    text = model.encode_prompts(["red circle"])
    picture = ImageTokens(torch.zeros(1, 4, model.transformer.config.in_channels), 2, 2)
    model.transformer.set_attn_processor(FluxAttnProcessor())
    with pytest.raises(SourceStreamError, match="no source stream"):
        model.velocity(picture, torch.tensor([0.5]), text, picture)


@pytest.mark.parametrize("source_timestep", ["same", "zero"])
def test_t3_every_block_routes_in_every_forward(source_timestep, base_path):
    model, weave = woven(base_path)
    picture = ImageTokens(torch.ones(1, 4, model.transformer.config.in_channels), 2, 2)
    text = model.encode_prompts(["red circle"])
    with weave.record() as routing:
        model.velocity(picture, torch.tensor([0.5]), text, picture, source_timestep=source_timestep)
    assert list(routing.decisions) == [site.name for site in weave.sites]
    assert all(len(decisions) == 1 for decisions in routing.decisions.values())


def test_t5_a_seed_and_a_picture_stay_together_in_every_epoch_and_after_a_resume():
    """Latents, captions and noise are made from the draw itself, so no order can pair them wrongly."""
    records = World(3)
    sampler = BatchSampler(5, batch_size=5, seed=1)
    stream = batches(records, "editing", sampler, NONE)
    epochs = [next(stream) for _ in range(3)]
    assert len({batch.ids for batch in epochs}) > 1
    assert {frozenset(batch.ids) for batch in epochs} == {frozenset(epochs[0].ids)}
    again = BatchSampler(5, batch_size=5, seed=1)
    again.load_state_dict({"position": 10})
    last = next(batches(records, "editing", again, NONE))
    assert (last.ids, last.seeds, last.prompts) == (epochs[2].ids, epochs[2].seeds, epochs[2].prompts)
    assert torch.equal(last.target, epochs[2].target)


@pytest.mark.parametrize("world_size", [1, 2])
def test_t6_t7_t9_epochs_differ_on_any_number_of_ranks_and_every_record_comes_once(world_size):
    ranks = [
        iter(BatchSampler(8, batch_size=4, seed=0, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    epochs = []
    for _ in range(3):
        dealt = [next(rank) for _ in range(2) for rank in ranks]
        epochs.append([draw.record_index for draws in dealt for draw in draws])
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_t6_t7_t8_the_loader_is_not_given_to_accelerate():
    for file in (ROOT / "recipes/cologen/training").glob("*.py"):
        assert not re.search(r"accelerator\.prepare\(|prepare_data_loader", file.read_text()), file


def test_t12_a_pair_in_which_nothing_changes_is_skipped_and_named():
    rng = np.random.default_rng(0)
    before, after = rng.integers(0, 256, (2, 16, 24, 3), dtype=np.uint8)
    same, other = (
        Record(name, before, "a", pairs=(Pair("editing", result, "do it"),))
        for name, result in (("same", before), ("other", after))
    )

    class Records:
        def record(self, index):
            return same if index == 0 else other

    made = Examples(Records(), "editing", NONE)[SampleIndex(0, 7)]
    assert made.id.startswith("other")
    assert made.skipped == ("same: source and target of editing are the same picture",)
    Records.record = lambda self, index: same
    with pytest.raises(TooManyBrokenError, match="same picture"):
        Examples(Records(), "editing", NONE)[SampleIndex(0, 7)]


@pytest.mark.parametrize("changed", ["timestep", "pooled"])
def test_t13_keys_of_the_source_are_only_kept_where_they_cannot_change(changed, base_path):
    """With the picture's own timestep a cache is refused; at timestep 0 it is made anew for each prompt."""
    model, _ = woven(base_path)
    picture = ImageTokens(torch.randn(1, 4, model.transformer.config.in_channels), 2, 2)
    one, other = (model.encode_prompts([text]) for text in ("red circle", "blue square"))
    kept = model.source_kv(picture, one)
    if changed == "timestep":
        with pytest.raises(SourceStreamError, match="hold for timestep 0 only"):
            model.velocity(picture, torch.tensor([0.5]), one, kept, source_timestep="same")
    else:
        elsewhere = model.source_kv(picture, other)
        assert any(not torch.equal(kept.read(site).key, elsewhere.read(site).key) for site in kept.sites)


def test_t14_gradients_reach_an_expert_that_nobody_picked(base_path):
    model, weave = woven(base_path, "pool.noise=false")
    weave.add_expert("grounding")
    with torch.no_grad():
        for name, value in model.transformer.named_parameters():
            if ".prw_gate" in name:
                value.fill_(-50.0 if ".prw_gate1" in name else 50.0)
    picture = ImageTokens(torch.ones(1, 4, model.transformer.config.in_channels), 2, 2)
    with weave.record() as routing:
        model.velocity(
            picture, torch.tensor([0.5]), model.encode_prompts(["red"]), picture
        ).float().square().mean().backward()
    assert all(value.grad is not None for value in weave.trainable_parameters())
    assert routing.usage().shape[1] == 2


def test_t15_the_processors_are_ours_to_every_hook_that_looks_for_them(base_path):
    """Diffusers' skip-layer guidance finds processors by class; ours is unknown to it, and it says so."""
    from diffusers.hooks._helpers import AttentionProcessorRegistry

    from recipes.cologen.flux.source_stream import SourceStreamProcessor

    with pytest.raises(ValueError, match="not registered"):
        AttentionProcessorRegistry.get(SourceStreamProcessor)
