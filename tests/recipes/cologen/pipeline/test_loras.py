"""LoRAs beside the pool: they act, switch and leave without touching it, on both families."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from peft import LoraConfig
from safetensors.torch import load_file

import prw
from tests.prw.hosts.lora_orders import STEPS, Orders, lora_of
from tests.recipes.cologen.pipeline.conftest import add_pool, make, make_klein

pytestmark = pytest.mark.filterwarnings("ignore:Already unmerged:UserWarning")  # of layers a LoRA has left
both_timesteps = pytest.mark.parametrize("timestep", ["same", "zero"])


@pytest.fixture
def lora(build, tmp_path) -> SimpleNamespace:
    """A LoRA of all projections on disk."""
    pipe = build(experts=False)
    projections = ["to_q", "to_k", "to_v", "proj_mlp"]
    pipe.transformer.add_adapter(
        LoraConfig(r=2, target_modules=projections, init_lora_weights=False), "style"
    )
    pipe.transformer.save_lora_adapter(tmp_path / "lora", adapter_name="style")
    file = tmp_path / "lora" / "pytorch_lora_weights.safetensors"
    weights = {f"transformer.{name}": value for name, value in load_file(file).items()}
    return SimpleNamespace(weights=weights)


@both_timesteps
def test_a_lora_acts_beside_the_pool(build, tools, photo, lora, timestep) -> None:
    pipe = build()
    asked = {"source_timestep": timestep, "output_routing": True}
    plain = tools.draw(pipe, "a", photo, **asked)
    pipe.load_lora_weights(dict(lora.weights), adapter_name="style")
    loaded = tools.draw(pipe, "a", photo, **asked)
    pipe.set_adapters("style", 0.5)
    half = tools.draw(pipe, "a", photo, **asked)
    pipe.set_adapters(["style"], [1.0])
    with pipe.weave.disabled():
        without = tools.draw(pipe, "a", photo, source_timestep=timestep)
    drawn = [plain, loaded, half, without]
    assert all(tools.difference(a, b) > 1e-5 for n, a in enumerate(drawn) for b in drawn[:n])
    assert tools.difference(loaded, tools.draw(pipe, "a", photo, **asked)) == 0
    pipe.disable_lora()
    assert tools.difference(plain, tools.draw(pipe, "a", photo, **asked)) == 0
    pipe.enable_lora()
    assert tools.difference(loaded, tools.draw(pipe, "a", photo, **asked)) == 0
    with pytest.raises(prw.UnsupportedError, match="has the LoRA style"):
        pipe.save_pretrained("nowhere")
    pipe.unload_lora_weights()
    assert tools.difference(plain, tools.draw(pipe, "a", photo, **asked)) == 0
    assert type(pipe.transformer.proj_out) is torch.nn.Linear and list(pipe.transformer.peft_config) == [
        "default"
    ]
    pipe.load_lora_weights(dict(lora.weights), adapter_name="again")
    assert tools.difference(loaded, tools.draw(pipe, "a", photo, **asked)) == 0


def test_the_strength_of_adapters_is_the_pools_too(pipe, tools, photo, lora) -> None:
    with pipe.weave.disabled():
        base = tools.draw(pipe, "a", photo)
    assert tools.difference(base, tools.draw(pipe, "a", photo, joint_attention_kwargs={"scale": 0.0})) < 1e-6
    pipe.set_adapters("default", 0.0)
    assert tools.difference(base, tools.draw(pipe, "a", photo)) < 1e-6
    pipe.load_lora_weights(dict(lora.weights), adapter_name="style")
    pipe.set_adapters("style", 0.0)  # leaves the pool's own strength as it is
    assert tools.difference(base, tools.draw(pipe, "a", photo)) < 1e-6


def test_strengths_by_component_are_checked_and_leave_the_pools_own(pipe, tools, photo, lora, caplog) -> None:
    pipe.load_lora_weights(dict(lora.weights), adapter_name="style")
    pipe.set_adapters(["style", "default"], [0.5, 0.25])
    half = tools.draw(pipe, "a", photo)
    pipe.set_adapters("style", {"transformer": 0.5, "decoder": 1.0})
    assert "not part of the pipeline: ['decoder']" in caplog.text
    assert tools.difference(half, tools.draw(pipe, "a", photo)) == 0
    with pytest.raises(ValueError, match="not equal to the length"):
        pipe.set_adapters(["style"], [1.0, 1.0])


def test_a_lora_cannot_take_the_pools_name(pipe, lora) -> None:
    with pytest.raises(prw.UnsupportedError, match="'default' is the pool's"):
        pipe.load_lora_weights(dict(lora.weights), adapter_name="default")


def test_without_a_pool_loras_are_diffusers_own(build, tools, photo, lora) -> None:
    pipe = build(experts=False)
    plain = tools.draw(pipe, "a", photo)
    pipe.load_lora_weights(dict(lora.weights), adapter_name="style")
    assert tools.difference(plain, tools.draw(pipe, "a", photo)) > 1e-5
    pipe.unload_lora_weights()
    assert tools.difference(plain, tools.draw(pipe, "a", photo)) == 0


def test_a_lora_that_alone_is_active_is_refused(pipe, photo, lora) -> None:
    pipe.load_lora_weights(dict(lora.weights), adapter_name="style")
    pipe.transformer.set_adapters("style")  # the model's own call, past the pipeline
    with pytest.raises(prw.PoolError, match=r"set_adapters\(\['default', 'style'\]\)"):
        pipe("a", photo)


FAMILIES = {
    "flux1": (make, ["single_transformer_blocks.0.attn." + name for name in ("to_q", "to_k", "to_v")]),
    "klein": (make_klein, ["single_transformer_blocks.0.attn.to_qkv_mlp_proj"]),
}


@pytest.fixture(params=FAMILIES)
def orders(request):
    """Makes a pipeline of a family on which a pool and three LoRAs come and go."""
    build_family, single = FAMILIES[request.param]
    double = "transformer_blocks.0.attn."
    covered = {
        "a": [double + "to_q", double + "to_k", double + "to_v", *single],
        "b": [double + "to_k"],
        "c": [double + "to_v", "x_embedder"],
    }
    return lambda: Orders(build_family(experts=False), add_pool, covered, pool_is_named=False)


@settings(max_examples=10, suppress_health_check=list(HealthCheck))
@given(steps=STEPS)
def test_loras_and_pool_come_and_go(orders, steps) -> None:
    one = orders()
    for step in steps:
        one.take(step)


def test_every_order_that_once_failed(orders) -> None:
    one = orders()
    pool, unload = ("pool", None), ("unload", None)
    for step in [("lora", "a"), unload, pool, ("lora", "a"), ("lora", "b"), ("fuse", 0.5), ("lora", "a")]:
        one.take(step)
    for step in [("lora", "c"), ("lora", "a"), pool, pool, unload, pool]:
        one.take(step)


def test_loras_without_a_name_each_get_one(orders) -> None:
    one = orders()
    one.take(("pool", None))
    for name in ("b", "a", "c"):
        one.pipe.load_lora_weights(dict(one.loras[name]))
    assert sorted(one.model.peft_config) == ["default", "default_0", "default_1", "default_2"]


def test_a_lora_of_another_rank_is_swapped_in_place(orders) -> None:
    one = orders()
    one.take(("pool", None))
    one.pipe.enable_lora_hotswap(target_rank=4)
    one.take(("lora", "a"))
    paths = [name.removesuffix(".lora_A.weight").removeprefix("transformer.") for name in one.loras["a"]]
    one.loras["a"] = lora_of(one.model, [path for path in paths if ".lora_B" not in path], seed=9, rank=4)
    one.pipe.load_lora_weights(dict(one.loras["a"]), adapter_name="a", hotswap=True)
    one.settle()
    one.check()


def test_a_lora_moves_and_the_pool_stays(orders) -> None:
    one = orders()
    one.take(("pool", None))
    one.take(("lora", "a"))
    one.pipe.set_lora_device(["a"], "meta")
    places = {name: weight.is_meta for name, weight in one.model.named_parameters()}
    assert all(places[name] == (".lora_A." in name or ".lora_B." in name) for name in places)


def test_calls_for_loras_refuse_the_pool(pipe, tools, photo, lora) -> None:
    pipe.load_lora_weights(dict(lora.weights), adapter_name="style")
    before = tools.draw(pipe, "a", photo)
    for call in (pipe.fuse_lora, pipe.delete_adapters):
        with pytest.raises(prw.UnsupportedError, match="'default' is the pool, not a LoRA"):
            call(adapter_names=["style", "default"])
    with pytest.raises(prw.UnsupportedError, match="'default' is the pool, not a LoRA"):
        pipe.set_lora_device(["style", "default"], "cpu")
    assert tools.difference(before, tools.draw(pipe, "a", photo)) == 0  # nothing has changed
    pipe.delete_adapters("style")
    pipe.weave.eject()
    assert pipe.weave is None


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fused_lora_draws_as_before_and_the_pool_keeps_its_strength(made, tools, photo, family) -> None:
    pipe = made(family)
    double = "transformer_blocks.0.attn."
    weights = lora_of(pipe.transformer, [double + "to_q", double + "to_k"], seed=0)
    pipe.load_lora_weights(dict(weights), adapter_name="style")
    before = tools.draw(pipe, "a", photo)
    pipe.fuse_lora()
    assert pipe.fused_loras == {"style"}
    assert 0 < tools.difference(before, tools.draw(pipe, "a", photo)) < 1e-5
    pipe.unfuse_lora()
    assert not pipe.fused_loras
    assert tools.difference(before, tools.draw(pipe, "a", photo)) < 1e-5


def test_a_lora_leaves_a_pool_under_group_offload(pipe, tools, photo, lora) -> None:
    plain = tools.draw(pipe, "a", photo)
    cpu = torch.device("cpu")
    pipe.transformer.enable_group_offload(cpu, cpu, offload_type="leaf_level")
    pipe.load_lora_weights(dict(lora.weights), adapter_name="style")
    assert tools.difference(plain, tools.draw(pipe, "a", photo)) > 1e-5
    pipe.unload_lora_weights()
    assert tools.difference(plain, tools.draw(pipe, "a", photo)) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_unloading_without_a_pool_is_the_stock_call(made, tools, photo, family) -> None:
    pipe = made(family, experts=False)
    plain = tools.draw(pipe, "a", photo)
    weights = lora_of(pipe.transformer, ["transformer_blocks.0.attn.to_q"], seed=0)
    pipe.load_lora_weights(dict(weights), adapter_name="style")
    pipe.unload_lora_weights()
    assert tools.difference(plain, tools.draw(pipe, "a", photo)) == 0
    if family == "klein":  # stock Flux2KleinPipeline has no such argument
        with pytest.raises(TypeError, match="reset_to_overwritten_params"):
            pipe.unload_lora_weights(reset_to_overwritten_params=True)
    else:
        pipe.unload_lora_weights(reset_to_overwritten_params=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_active_loras_can_be_given_to_every_call(made, tools, photo, family) -> None:
    pipe = made(family)
    before = tools.draw(pipe, "a", photo)
    assert pipe.get_active_adapters() == []
    for seed, (name, projection) in enumerate({"one": "to_q", "two": "to_k"}.items()):
        weights = lora_of(pipe.transformer, [f"transformer_blocks.0.attn.{projection}"], seed)
        pipe.load_lora_weights(dict(weights), adapter_name=name)
    assert sorted(pipe.get_list_adapters()["transformer"]) == ["default", "one", "two"]
    pipe.set_adapters("two")
    assert pipe.get_active_adapters() == ["two"]
    pipe.set_adapters(["two", "default"], 0.5)  # the pool, named for its strength
    assert pipe.get_active_adapters() == ["two"]
    pipe.set_adapters("default", 1.0)
    assert pipe.get_active_adapters() == []
    pipe.set_adapters(["one", "two"])
    pipe.fuse_lora(adapter_names=pipe.get_active_adapters())
    pipe.unfuse_lora()
    pipe.set_lora_device(pipe.get_active_adapters(), "cpu")
    pipe.delete_adapters("one")
    assert pipe.get_active_adapters() == ["two"]
    pipe.delete_adapters(pipe.get_active_adapters())
    assert pipe.get_active_adapters() == []
    assert tools.difference(before, tools.draw(pipe, "a", photo)) < 1e-5


def test_a_pool_is_not_among_the_active_loras(build, lora) -> None:
    pipe = build(experts=False)
    pipe.load_lora_weights(dict(lora.weights), adapter_name="style")
    assert pipe.get_active_adapters() == ["style"]
    add_pool(pipe.transformer)
    assert pipe.get_active_adapters() == ["style"]
    pipe.text_encoder.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]), "words")
    assert sorted(pipe.get_active_adapters()) == ["style", "words"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_scale_of_zero_is_the_base_and_leaves_the_next_call_as_it_was(made, tools, photo, family) -> None:
    pipe = made(family)
    with pipe.weave.disabled():
        base = tools.draw(pipe, "a", photo)
    weights = lora_of(pipe.transformer, ["transformer_blocks.0.attn.to_q"], seed=0)
    pipe.load_lora_weights(dict(weights), adapter_name="style")
    both = tools.draw(pipe, "a", photo)
    half = tools.draw(pipe, "a", photo, joint_attention_kwargs={"scale": 0.5})
    assert tools.difference(base, tools.draw(pipe, "a", photo, joint_attention_kwargs={"scale": 0.0})) < 1e-6
    assert tools.difference(both, tools.draw(pipe, "a", photo)) == 0
    pipe.set_adapters(["style", "default"], 0.5)  # one strength for a call, or for good: the same picture
    assert tools.difference(half, tools.draw(pipe, "a", photo)) < 1e-6


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
@pytest.mark.parametrize("family", FAMILIES)
def test_calls_for_loras_refuse_a_pool_of_any_name(made, photo, family) -> None:
    pipe = made(family, pool={"adapter": "experts"})
    with pytest.raises(prw.UnsupportedError, match="'experts' is the pool's"):
        pipe.load_lora_weights({}, adapter_name="experts")
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_k"]))  # the model's own call
    with pytest.raises(prw.PoolError, match="'experts' is switched off"):
        pipe("a", photo)
    pipe.set_adapters("default")
    assert pipe.get_active_adapters() == ["default"]
    pipe("a", photo, num_inference_steps=1)


def test_a_deleted_lora_leaves_the_pool(pipe, tools, photo, lora) -> None:
    before = tools.draw(pipe, "a", photo)
    pipe.load_lora_weights(dict(lora.weights), adapter_name="style")
    assert tools.difference(before, tools.draw(pipe, "a", photo)) > 1e-5
    pipe.delete_adapters("style")
    assert tools.difference(before, tools.draw(pipe, "a", photo)) == 0
    assert pipe.weave.experts == ("inpainting", "grounding")


@both_timesteps
def test_a_lora_acts_beside_the_pool_on_flux2(made, tools, photo, timestep) -> None:
    donor = made("klein", experts=False)
    projections = ["to_q", "to_v", "to_qkv_mlp_proj"]
    donor.transformer.add_adapter(
        LoraConfig(r=2, target_modules=projections, init_lora_weights=False), "style"
    )
    weights = {
        f"transformer.{name.replace('.style', '')}": value.detach().clone()
        for name, value in donor.transformer.state_dict().items()
        if ".lora_" in name
    }
    pipe = made("klein")
    asked = {"source_timestep": timestep, "output_routing": True}
    plain = tools.draw(pipe, "a", photo, **asked)
    pipe.load_lora_weights(dict(weights), adapter_name="style")
    loaded = tools.draw(pipe, "a", photo, **asked)
    pipe.set_adapters("style", 0.5)
    half = tools.draw(pipe, "a", photo, **asked)
    with pipe.weave.disabled():
        without = tools.draw(pipe, "a", photo, source_timestep=timestep)
    drawn = [plain, loaded, half, without]
    assert all(tools.difference(a, b) > 1e-5 for n, a in enumerate(drawn) for b in drawn[:n])
    pipe.disable_lora()
    assert tools.difference(plain, tools.draw(pipe, "a", photo, **asked)) == 0
    pipe.unload_lora_weights()
    assert tools.difference(plain, tools.draw(pipe, "a", photo, **asked)) == 0
    assert list(pipe.transformer.peft_config) == ["default"]
