"""A LoRA from anywhere as a veteran: ranks and scale, its K and V part, what is dropped, every format."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import prw
from tests.prw.storage.loras import lora_folder, lora_of, prefixed, state_of

SETTINGS = {"rank": 4, "alpha": 6.0}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"r": 9, "lora_alpha": 4},
        {"r": 1, "use_rslora": True},
        {"rank_pattern": {"to_v": 5, "blocks.0.to_k": 2}, "alpha_pattern": {"0.to_v": 11}},
        {"rank_pattern": {"to_v": 6}, "use_rslora": True},
        {"target_modules": ["to_v"]},
        {"layers_to_transform": [1], "layers_pattern": "blocks"},
    ],
)
def test_an_imported_lora_computes_what_peft_computes(make_plain, tmp_path, options):
    base = make_plain().eval()
    lora = lora_of(base, **options)
    lora.save_pretrained(tmp_path / "lora")
    weave = prw.inject(base, rank=4, alpha=6.0, rank_pattern={"1.to_k": 2})
    report = weave.import_lora(tmp_path / "lora", name="style", strict=True)
    hidden = torch.randn(3, 5, 8)
    wanted = lora(hidden)
    assert torch.allclose(base(hidden), wanted, atol=1e-6)
    assert not torch.allclose(base(hidden), lora.base_model.model.blocks[0](hidden), atol=1e-3)
    theirs = {
        name.removesuffix(".lora_A.weight"): w.shape[0] for name, w in state_of(lora).items() if "_A" in name
    }
    assert report.ranks == theirs
    assert report.dropped == ()
    assert set(report.without) == {f"blocks.{b}.to_{p}" for b in (0, 1) for p in "kv"} - set(theirs)
    weave.save_pretrained(tmp_path / "pool")
    weave.eject()
    prw.load(base, tmp_path / "pool")
    assert torch.allclose(base(hidden), wanted, atol=1e-6)


@given(
    st.lists(st.integers(1, 9), min_size=2, max_size=2), st.floats(0.1, 50), st.integers(1, 6), st.booleans()
)
def test_the_scale_is_folded_to_the_last_digit(ranks, alpha, pool_rank, imported_first):
    """The imported expert's A stays as it is, and scale * B is alpha / rank * B, in one rounding."""
    model = torch.nn.ModuleDict({"to_k": torch.nn.Linear(6, 4), "to_v": torch.nn.Linear(6, 5)})
    weights = {}
    for name, rank, out in zip(("to_k", "to_v"), ranks, (4, 5), strict=True):
        weights[f"{name}.lora_A.weight"] = torch.randn(rank, 6)
        weights[f"{name}.lora_B.weight"] = torch.randn(out, rank)
        weights[f"{name}.alpha"] = torch.tensor(alpha, dtype=torch.float64)
    weave = prw.inject(model, rank=pool_rank, experts=[] if imported_first else ["a"])
    weave.import_lora(weights, name="style")
    index = 0 if imported_first else 1
    for name, rank in zip(("to_k", "to_v"), ranks, strict=True):
        layer = model[name]
        down, up = (getattr(layer, f"prw_{part}{index}")["default"].weight for part in "AB")
        assert torch.equal(down, weights[f"{name}.lora_A.weight"])
        wanted = weights[f"{name}.lora_B.weight"].double() * (alpha / rank / layer.scales["default"])
        assert torch.equal(up, wanted.float())


def test_only_its_part_is_taken_and_the_rest_is_reported_or_refused(make_plain, tmp_path):
    base = make_plain().eval()
    lora = lora_of(base, target_modules=["to_q", "to_v"])
    lora.save_pretrained(tmp_path)
    weave = prw.inject(base, rank=4, experts=["a"])
    with pytest.raises(prw.StorageError, match=r"2 modules that have no experts .*to_q.*strict=False"):
        weave.import_lora(tmp_path, name="style", strict=True)
    assert weave.experts == ("a",)
    report = weave.import_lora(tmp_path, name="style")
    assert report.dropped == ("blocks.0.to_q", "blocks.1.to_q")
    assert report.ranks == {"blocks.0.to_v": 3, "blocks.1.to_v": 3}
    assert report.without == ("blocks.0.to_k", "blocks.1.to_k")
    assert (report.expert, report.source) == ("style", str(tmp_path))


def test_a_module_saved_whole_is_dropped_elsewhere(make_plain, tmp_path):
    base = make_plain().eval()
    lora_of(base, modules_to_save=["blocks.0.to_q"]).save_pretrained(tmp_path)
    weave = prw.inject(base, rank=4)
    assert weave.import_lora(tmp_path, name="a").dropped == ("blocks.0.to_q.bias", "blocks.0.to_q.weight")


@pytest.mark.parametrize("extra", ["lora_magnitude_vector", "lora_B.bias", "bias", "dora_scale"])
def test_more_than_a_and_b_on_a_key_or_value_is_refused(make_plain, extra):
    base = make_plain()
    weights = state_of(lora_of(base))
    weave = prw.inject(base, rank=4)
    with pytest.raises(
        prw.StorageError, match=rf"at blocks.1.to_k it also has transformer.blocks.1.to_k.{extra}"
    ):
        weave.import_lora(
            {**prefixed(weights), f"transformer.blocks.1.to_k.{extra}": torch.ones(8)}, name="a"
        )
    assert weave.experts == ()


def test_other_models_of_a_pipeline_are_dropped_unless_they_collide(make_plain):
    base = make_plain()
    weights = state_of(lora_of(base))
    other = {"text_encoder.layers.0.q_proj.lora_A.weight": torch.ones(1, 2)}
    other["text_encoder.layers.0.q_proj.lora_B.weight"] = torch.ones(2, 1)
    weave = prw.inject(base, rank=4)
    report = weave.import_lora({**prefixed(weights), **other}, name="a")
    assert report.dropped == ("text_encoder.layers.0.q_proj",)
    with pytest.raises(prw.StorageError, match=r"two LoRAs for blocks.0.to_k"):
        weave.import_lora({**prefixed(weights), **prefixed(weights, "unet.")}, name="b")


def test_an_imported_expert_survives_growth_and_as_of(make_plain, wake, tmp_path):
    base = make_plain().eval()
    lora_of(base, r=6).save_pretrained(tmp_path / "lora")
    weave = prw.inject(base, rank=2)
    weave.import_lora(tmp_path / "lora", name="style")
    hidden = torch.randn(2, 5, 8)
    alone = base(hidden)
    weave.save_pretrained(tmp_path / "stage")
    weave.add_expert("mine")
    wake(weave)
    prw.load(base, tmp_path / "stage")
    with weave.as_of("style"):
        assert torch.equal(base(hidden), alone)
    assert load_file(tmp_path / "stage" / "adapter_model.safetensors")


FLUX_NAMES = {
    "kohya": ("lora_unet_{}", "_", "lora_down", "lora_up"),
    "original": ("diffusion_model.{}", ".", "lora_A", "lora_B"),
    "bare": ("{}", ".", "lora_A", "lora_B"),
}


def flux_lora(form, rank=3, alpha=6.0):
    """A LoRA on FLUX's fused projections, under the names of the original model; its change of each."""
    template, dot, down, up = FLUX_NAMES[form]
    sizes = {f"double_blocks.0.{stream}_attn.qkv": 96 for stream in ("img", "txt")}
    sizes["single_blocks.0.linear1"] = 224
    weights, changes = {}, {}
    for seed, (name, rows) in enumerate(sizes.items()):
        generator = torch.Generator().manual_seed(seed)
        a, b = torch.randn(rank, 32, generator=generator), torch.randn(rows, rank, generator=generator)
        changes[name] = b @ a * alpha / rank
        module = template.format(name.replace(".", dot))
        weights |= {f"{module}.{down}.weight": a, f"{module}.{up}.weight": b}
        weights[f"{module}.alpha"] = torch.tensor(alpha)
    return weights, changes


@pytest.mark.parametrize("form", FLUX_NAMES)
def test_a_lora_of_flux_under_its_original_names_is_cut_into_keys_and_values(make_host, tmp_path, form):
    weights, changes = flux_lora(form)
    save_file(weights, tmp_path / "style.safetensors")
    model = make_host("flux").model.eval()
    weave = prw.inject(model, rank=2)
    report = weave.import_lora(tmp_path / "style.safetensors", name="style")
    hidden = torch.randn(2, 5, 32)
    for block, name in (
        ("transformer", "double_blocks.0.img_attn.qkv"),
        ("single_transformer", "single_blocks.0.linear1"),
    ):
        for place, projection in enumerate(("to_k", "to_v"), start=1):
            layer = model.get_submodule(f"{block}_blocks.0.attn.{projection}")
            wanted = hidden @ changes[name][32 * place : 32 * (place + 1)].T
            assert torch.allclose(layer(hidden) - layer(hidden, routed=False), wanted, atol=1e-4)
    assert set(report.ranks.values()) == {3}
    assert report.without == ()
    assert [name.replace("_", ".").split(" ")[0][-11:] for name in report.dropped] == [
        ".img.attn.qkv"[-11:],
        ".txt.attn.qkv"[-11:],
        "cks.0.linear1"[-11:],
    ]
    assert "(32 rows that are neither keys nor values)" in report.dropped[0]
    assert "(160 rows that are neither keys nor values)" in report.dropped[2]


def test_the_text_stream_and_fused_projections_of_flux_take_it_too(make_host):
    weights, changes = flux_lora("kohya")
    model = make_host("flux").model.eval()
    weave = prw.inject(model, target=["add_k_proj", "add_v_proj"], rank=2)
    weave.import_lora(weights, name="style")
    hidden, layer = torch.randn(2, 5, 32), model.transformer_blocks[0].attn.add_v_proj
    wanted = hidden @ changes["double_blocks.0.txt_attn.qkv"][64:].T
    assert torch.allclose(layer(hidden) - layer(hidden, routed=False), wanted, atol=1e-4)
    weave.eject()
    model.fuse_qkv_projections()
    weave = prw.inject(model, rank=2)
    weave.import_lora(weights, name="style")
    layer = model.transformer_blocks[0].attn.to_qkv
    wanted = hidden @ changes["double_blocks.0.img_attn.qkv"][32:].T
    assert torch.allclose((layer(hidden) - layer(hidden, routed=False))[..., 32:], wanted, atol=1e-4)


def test_ranks_that_only_queries_use_are_left_out(make_host):
    weights, _ = flux_lora("kohya")
    up = "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight"
    weights[up][32:64, 1:] = 0  # as where q, k and v were trained with ranks of their own
    weave = prw.inject(make_host("flux").model, rank=2)
    report = weave.import_lora(weights, name="style")
    assert report.ranks["transformer_blocks.0.attn.to_k"] == 1
    assert report.ranks["transformer_blocks.0.attn.to_v"] == 3


def test_names_of_another_library_lead_to_what_translates_them(make_host):
    weave = prw.inject(make_host("flux").model, rank=2)
    other = {"blocks.7.wkv.lora_A.weight": torch.ones(1, 2), "blocks.7.wkv.lora_B.weight": torch.ones(2, 1)}
    with pytest.raises(prw.StorageError, match=r"FluxPipeline\.lora_state_dict\(file\)"):
        weave.import_lora(other, name="style")


def test_a_lora_of_a_wider_flux_is_refused(make_host):
    weights, _ = flux_lora("bare")
    name = "double_blocks.0.img_attn.qkv.lora_A.weight"
    weave = prw.inject(make_host("flux").model, rank=2)
    with pytest.raises(prw.StorageError, match="48 -> 32 wide"):
        weave.import_lora({**weights, name: torch.ones(3, 48)}, name="style")
    taller = {name.replace("_A", "_B"): torch.ones(288, 3)}
    with pytest.raises(prw.StorageError, match="32 -> 288 wide"):
        weave.import_lora({**weights, **taller}, name="style")
    assert weave.experts == ()


def test_an_imported_expert_keeps_its_weights_and_trains_its_router(make_plain, tmp_path):
    base = make_plain().eval()
    lora_folder(copy.deepcopy(base), tmp_path / "lora", r=2, lora_alpha=3, target_modules=["to_v"])
    weave = prw.inject(base, experts=["a"], **SETTINGS)
    weave.import_lora(tmp_path / "lora", name="style")
    training = {n for n, p in base.named_parameters() if p.requires_grad}
    assert training == {
        f"blocks.{b}.to_k.prw_{part}1.default.weight" for b in (0, 1) for part in ("gate", "noise")
    }
    value, key = base.blocks[0].to_v, base.blocks[0].to_k
    assert value.prw_B1["default"].weight.shape == (8, 2)
    assert value.prw_B1["default"].weight.any()
    assert not key.prw_B1["default"].weight.any()
    weave.save_pretrained(tmp_path / "pool")
    weave.eject()
    assert len(prw.load(base, tmp_path / "pool").trainable_parameters()) == 4


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (
            {"target_modules": ["to_q"]},
            "adapts none of the pool's projections .*to_k.*, only 2 others .*to_q",
        ),
        ({"use_dora": True}, "not a plain LoRA.*use_dora"),
        ({"bias": "lora_only"}, "not a plain LoRA.*bias"),
        (
            {"init_lora_weights": "pissa"},
            "'pissa'.*path_initial_model_for_weight_conversion",
        ),
        ({"init_lora_weights": "pissa_niter_2"}, "init_lora_weights='pissa_niter_2'"),
        ({"init_lora_weights": "olora"}, "init_lora_weights='olora'"),
    ],
)
def test_a_lora_that_is_no_expert_is_refused(make_plain, tmp_path, options, match):
    base = make_plain()
    lora_folder(copy.deepcopy(base), tmp_path / "lora", **options)
    weave = prw.inject(base, experts=["a"], **SETTINGS)
    with pytest.raises(prw.StorageError, match=match):
        weave.import_lora(tmp_path / "lora", name="style")
    assert weave.experts == ("a",)


def test_a_pool_or_another_models_lora_is_refused(make_plain, tmp_path):
    base = make_plain()
    weave = prw.inject(base, experts=["a"], **SETTINGS)
    weave.save_pretrained(tmp_path / "pool")
    with pytest.raises(prw.StorageError, match="is a PRW adapter"):
        weave.import_lora(tmp_path / "pool", name="style")
    lora_folder(make_plain(width=6), tmp_path / "narrow")
    with pytest.raises(prw.StorageError, match="6 -> 6 wide, the projection is 8 -> 8"):
        weave.import_lora(tmp_path / "narrow", name="style")
    with pytest.raises(prw.PoolError, match="no expert 'z'"):
        weave.export_lora("z", tmp_path / "z")
    assert not (tmp_path / "z").exists()
