"""Models that are compiled or wrapped before they get a pool: its paths are those of the model inside."""

from __future__ import annotations

import json

import pytest
import torch
import torch.distributed as dist
import transformers
from hypothesis import given
from hypothesis import strategies as st
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.parallel import DataParallel, DistributedDataParallel

import prw
from prw.tuner.module_paths import INSIDE, base_path, module_at, plain_path

# What dynamo does with the input of a second compiled block; nothing of ours.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")

POOL = {"rank": 2, "experts": ["a", "b"]}
HIDDEN = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


def compiled(model):
    return torch.compile(model, backend="eager")


def compiled_blocks(model):
    model.blocks = nn.ModuleList(compiled(block) for block in model.blocks)
    return model


def checkpointed_blocks(model):
    model.blocks = nn.ModuleList(checkpoint_wrapper(block) for block in model.blocks)
    return model


def twice(model):
    return compiled(DataParallel(compiled_blocks(model)))


WRAPPERS = {
    "compiled": compiled,
    "compiled blocks": compiled_blocks,
    "checkpointed blocks": checkpointed_blocks,
    "DataParallel": DataParallel,
    "twice": twice,
}
IN_PLACE = ["compiled", "compiled blocks", "checkpointed blocks"]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def twins(make_plain):
    """A maker of models with the same weights."""
    base = make_plain().state_dict()

    def make():
        model = make_plain().eval()
        model.load_state_dict(base)
        return model

    return make


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_inject_save_load_and_eject_work_on_a_wrapped_model(twins, wake, wrap, tmp_path):
    plain, wrapped = prw.inject(twins(), **POOL), wrap(twins())
    before = wrapped(HIDDEN)
    weave = prw.inject(wrapped, **POOL)
    assert weave.sites == plain.sites
    wake(weave)
    weave.save_pretrained(tmp_path / "wrapped")
    plain.eject()
    plain = prw.load(plain.model, tmp_path / "wrapped")
    plain.save_pretrained(tmp_path / "plain")
    expected = plain.model(HIDDEN)
    assert torch.allclose(wrapped(HIDDEN), expected, atol=1e-6), "the wrapper goes on with the experts"
    assert not torch.allclose(before, expected, atol=1e-3)
    assert prw.Weave(wrapped).experts == ("a", "b")
    for folder in ("wrapped", "plain"):
        for model in (wrap(twins()), twins()):
            prw.load(model, tmp_path / folder)
            assert torch.allclose(model(HIDDEN), expected, atol=1e-6)
    weave.add_expert("c")
    prw.load(wrapped, tmp_path / "plain")
    with weave.as_of("b"):
        assert torch.allclose(wrapped(HIDDEN), expected, atol=1e-6)
    weave.eject()
    assert torch.allclose(wrapped(HIDDEN), before, atol=1e-6)
    assert not any("prw" in name or "base_layer" in name for name in wrapped.state_dict())


CHOICES = {
    "exclude a block": {"exclude": "blocks.0"},
    "exclude a path": {"target": ["to_k", "to_v"], "exclude": ["blocks.1.to_v"]},
    "exclude of everything": {"target": "all-linear", "exclude": "*.to_[qv]"},
    "whole paths": {"target": ["blocks.1.to_k", "blocks.0.to_v"]},
    "a pattern": {"target": r"blocks\.0\.to_[kv]"},
    "a glob": {"target": "blocks.1.*"},
    "layers": {"layers": 1},
}


@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_what_is_chosen_of_a_wrapped_model_is_chosen_by_the_paths_of_the_model_inside(twins, wrap, choice):
    plain, wrapped = (prw.inject(model, **POOL, **choice) for model in (twins(), wrap(twins())))
    assert wrapped.sites == plain.sites
    assert wrapped.config.exclude_modules == plain.config.exclude_modules
    assert len(plain.sites) < len(prw.inject(twins(), **{**POOL, "target": "all-linear"}).sites)


@pytest.mark.parametrize("wrap", [WRAPPERS[name] for name in IN_PLACE], ids=IN_PLACE)
def test_a_peft_model_around_a_wrapped_model_saves_what_any_model_loads(twins, wake, wrap, tmp_path):
    wrapped = get_peft_model(wrap(twins()), prw.PrwConfig(**POOL)).eval()
    wake(prw.Weave(wrapped))
    expected = wrapped(HIDDEN)
    wrapped.save_pretrained(tmp_path)
    for make in (twins, lambda: wrap(twins())):
        loaded = PeftModel.from_pretrained(make(), tmp_path).eval()
        assert torch.allclose(loaded(HIDDEN), expected, atol=1e-6)
    model = twins()
    prw.load(model, tmp_path)
    assert torch.allclose(model(HIDDEN), expected, atol=1e-6)


@pytest.mark.parametrize("first", [compiled, lambda model: model], ids=["compiled", "plain"])
def test_a_state_dict_gives_a_compiled_model_the_same_sites(twins, wake, first):
    config = prw.PrwConfig(**POOL)
    source = inject_adapter_in_model(config, first(twins()))
    wake(prw.Weave(source))
    state = get_peft_model_state_dict(source)
    model = inject_adapter_in_model(config, compiled(twins()), state_dict=state)
    assert prw.Weave(model).sites == prw.inject(twins(), **POOL).sites
    assert not set_peft_model_state_dict(model, state).unexpected_keys
    assert get_peft_model_state_dict(model).keys() == state.keys()
    assert torch.allclose(model(HIDDEN), source(HIDDEN), atol=1e-6)


def test_a_state_dict_with_fewer_projections_says_which_sites_there_are(twins):
    source = prw.inject(twins(), target=["blocks.0.to_k", "blocks.0.to_v"], **POOL).model
    state = get_peft_model_state_dict(source)
    with pytest.warns(RuntimeWarning, match="inconsistency"):
        model = inject_adapter_in_model(prw.PrwConfig(**POOL), twins(), state_dict=state)
    weave = prw.Weave(model)
    assert [site.modules for site in weave.sites] == [("blocks.0.to_k", "blocks.0.to_v")]
    assert weave.config.target_modules == ["blocks.0.to_k", "blocks.0.to_v"]


def test_what_would_leave_new_experts_out_is_refused_before_anything_changes(twins, tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    try:
        model = DistributedDataParallel(twins())
        prw.inject(twins(), **POOL).save_pretrained(tmp_path / "pool")
        for call in (
            lambda: prw.inject(model, **POOL),
            lambda: prw.inject(compiled(model), **POOL),
            lambda: prw.inject(model, exclude="nothing", **POOL),
            lambda: prw.load(model, tmp_path / "pool"),
            lambda: get_peft_model(model, prw.PrwConfig(**POOL)),
            lambda: inject_adapter_in_model(prw.PrwConfig(**POOL), model),
        ):
            with pytest.raises(prw.UnsupportedError, match="DistributedDataParallel"):
                call()
        assert not hasattr(model.module, "peft_config")
        assert all(parameter.requires_grad for parameter in model.parameters())
        pooled = twins()
        prw.inject(pooled, **POOL)
        around = DistributedDataParallel(pooled)
        assert prw.Weave(around).experts == ("a", "b")
        prw.Weave(around).save_pretrained(tmp_path / "again")
        prw.load(around, tmp_path / "again")
    finally:
        dist.destroy_process_group()


def test_a_projection_that_is_compiled_by_itself_is_refused(twins):
    model = twins()
    model.blocks[0].to_k = compiled(model.blocks[0].to_k)
    with pytest.raises(prw.TargetError, match=r"blocks\.0\.to_k is compiled by itself"):
        prw.inject(model, **POOL)
    assert not hasattr(model, "peft_config")


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "blocks", "0"]), st.lists(st.sampled_from(INSIDE), max_size=3, unique=True)
        )
    )
)
def test_a_plain_path_is_the_path_without_wrappers_and_leads_to_the_module(steps):
    leaf = nn.Linear(2, 2)
    model: nn.Module = leaf
    for name, wrappers in reversed(steps):
        for wrapper in wrappers:
            model = compiled(model) if wrapper == "_orig_mod" else checkpoint_wrapper(model)
        model = nn.ModuleDict({name: model})
    paths = [path for path, module in model.named_modules() if module is leaf]
    wanted = ".".join(name for name, _ in steps)
    assert [plain_path(path) for path in paths] == [wanted]
    assert module_at(model, wanted) is leaf


def test_hooks_of_accelerate_keep_their_place(twins, wake):
    from accelerate import dispatch_model

    model = dispatch_model(twins(), {"": "cpu"}, force_hooks=True)
    before = model(HIDDEN)
    weave = prw.inject(model, **POOL)
    assert torch.equal(model(HIDDEN), before)
    wake(weave)
    assert not torch.equal(model(HIDDEN), before)
    weave.eject()
    assert torch.equal(model(HIDDEN), before)


class Old(nn.Module):
    """A model as it was: its blocks directly inside."""

    def __init__(self, stack):
        super().__init__()
        self.blocks = stack.blocks

    def forward(self, hidden):
        for block in self.blocks:
            hidden = block(hidden)
        return hidden


class New(nn.Module):
    """The same model of a later version, which says where its blocks have gone."""

    _checkpoint_conversion_mapping = {r"^blocks": "model.language_model.blocks"}  # noqa: RUF012

    def __init__(self, stack):
        super().__init__()
        self.model = nn.ModuleDict({"language_model": stack})

    def forward(self, hidden):
        return self.model["language_model"](hidden)


@pytest.fixture
def versions(make_plain):
    """Makers of the old and the new version with the same weights."""
    base = make_plain().state_dict()

    def stack():
        made = make_plain().eval()
        made.load_state_dict(base)
        return made

    return lambda: Old(stack()).eval(), lambda: New(stack()).eval()


@pytest.mark.parametrize("target", ["kv", "all-linear", ["to_k", "to_v"], ["blocks.0.to_k", "blocks.1.to_v"]])
def test_a_pool_of_the_old_version_loads_into_the_new_one(versions, wake, tmp_path, target):
    old, new = versions
    weave = prw.inject(old(), target=target, **POOL)
    wake(weave)
    weave.save_pretrained(tmp_path)
    expected = weave.model(HIDDEN)
    loaded = PeftModel.from_pretrained(new(), tmp_path).eval()
    assert torch.equal(loaded(HIDDEN), expected)
    model = new()
    again = prw.load(model, tmp_path)
    assert torch.equal(model(HIDDEN), expected)
    assert all(path.startswith("model.language_model.") for site in again.sites for path in site.modules)
    again.add_expert("c")
    prw.load(model, tmp_path)  # an earlier stage, into the larger pool
    again.remove_expert("c")
    again.save_pretrained(tmp_path / "new")
    third = new()
    prw.load(third, tmp_path / "new")
    assert torch.equal(third(HIDDEN), expected)


def test_a_pool_goes_as_far_as_a_lora(versions, tmp_path):
    old, new = versions
    lora = get_peft_model(old(), LoraConfig(target_modules=["to_k"], init_lora_weights=False)).eval()
    lora.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(new(), tmp_path).eval()
    assert torch.equal(loaded(HIDDEN), lora(HIDDEN))


def test_excluded_projections_and_ranks_of_an_imported_expert_move_along(versions, wake, tmp_path):
    old, new = versions
    lora = get_peft_model(
        old(),
        LoraConfig(r=3, rank_pattern={"to_v": 1}, target_modules=["to_k", "to_v"], init_lora_weights=False),
    )
    lora.save_pretrained(tmp_path / "lora")
    weave = prw.inject(old(), exclude=["blocks.1.to_v"], **POOL)
    weave.import_lora(tmp_path / "lora", name="theirs")
    wake(weave)
    weave.save_pretrained(tmp_path / "pool")
    for model in (new(), PeftModel.from_pretrained(new(), tmp_path / "pool").eval()):
        if not isinstance(model, PeftModel):
            prw.load(model, tmp_path / "pool")
        assert torch.equal(model(HIDDEN), weave.model(HIDDEN))


def tiny_llava():
    text = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )
    vision = transformers.CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
    )
    config = transformers.LlavaConfig(text_config=text, vision_config=vision, image_token_id=39)
    return transformers.LlavaForConditionalGeneration(config).eval()


def test_what_transformers_has_moved_is_found_too(wake, tmp_path):
    """Transformers 4 kept the language model of LLaVA at language_model.model."""
    base = tiny_llava()
    weights = {name: weight.clone() for name, weight in base.state_dict().items()}
    tokens = torch.randint(0, 39, (2, 6))
    weave = prw.inject(base, target=["*language_model*k_proj", "*language_model*v_proj"], **POOL)
    wake(weave)
    expected = base(input_ids=tokens).logits
    weave.save_pretrained(tmp_path)
    as_before(tmp_path)

    def fresh():
        model = tiny_llava()
        model.load_state_dict(weights)
        return model

    model = fresh()
    prw.load(model, tmp_path)
    assert torch.equal(model(input_ids=tokens).logits, expected)
    loaded = PeftModel.from_pretrained(fresh(), tmp_path).eval()
    assert torch.equal(loaded(input_ids=tokens).logits, expected)
    model = fresh()
    model.load_adapter(str(tmp_path))
    assert torch.allclose(model(input_ids=tokens).logits, expected, atol=1e-6)


def as_before(folder):
    """Give a saved pool the names that the projections had before they moved."""
    old, new = "language_model.layers", "model.language_model.layers"
    file = folder / "adapter_config.json"
    values = json.loads(file.read_text())
    values["target_modules"] = [path.replace(new, old) for path in values["target_modules"]]
    file.write_text(json.dumps(values))
    weights = load_file(folder / "adapter_model.safetensors")
    save_file(
        {name.replace(new, old): weight for name, weight in weights.items()},
        folder / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )


@pytest.mark.parametrize("paths", [["blocks.9.to_k"], ["far.blocks.0.to_k"]])
def test_a_path_that_has_moved_nowhere_is_refused(versions, tmp_path, paths):
    _, new = versions
    model = new()
    with pytest.raises(prw.TargetError, match="matched nothing"):
        get_peft_model(model, prw.PrwConfig(target_modules=paths, **POOL))
    assert not hasattr(model, "peft_config")


def test_the_base_is_named_without_wrappers_and_adapters_and_its_own_names_are_kept():
    assert base_path("a._orig_mod.to_k.base_layer.base_layer.weight") == "a.to_k.weight"
    assert base_path("a.base_layer.out_proj.base_layer.weight") == "a.out_proj.weight"
    assert base_path("a.to_k.base_layer.prw_A0.weight") == "a.to_k.prw_A0.weight"
    for name in ("a.base_layer_norm.weight", "a.base_layer.to_k.weight"):
        assert base_path(name) == name
