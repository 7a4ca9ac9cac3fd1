"""The configs for the real FLUX.1 bases: the paper's numbers, what differs, and what extends what."""

import pytest
from accelerate import init_empty_weights
from diffusers import FluxTransformer2DModel

import prw
from recipes.cologen.config.run import CONFIGS, ConfigError, load_config
from recipes.cologen.data.layouts import LAYOUTS
from recipes.cologen.flux import install_source_stream
from recipes.cologen.stages import COLOGEN_STAGES

FLUX = ("flux_dev", "flux_kontext", "flux_schnell", "flux2_klein")
PAPER = {  # cologen: steps, batch, rho, alpha (Table 1 and "progressive training")
    "inpainting": (200_000, 256, 1.0, 0.0),
    "grounding": (200_000, 256, 0.8, 0.5),
    "control": (400_000, 128, 0.8, 0.5),
    "customization": (50_000, 128, 0.8, 0.5),
    "editing": (200_000, 128, 0.8, 0.5),
}
SETS = {  # Table 1; UltraEdit's regions stand for what is in-house
    "inpainting": {"journeydb", "ade20k", "coco_stuff"},
    "grounding": {"refcoco", "lvis"},
    "control": {"multigen", "multigen_depth", "captioned_ade20k", "captioned_cocostuff"},
    "customization": {"subjects200k"},
    "editing": {"omniedit", "magicbrush", "ultraedit"},
}


@pytest.mark.parametrize("name", FLUX)
def test_a_flux_config_trains_as_the_paper_says(name):
    config = load_config(name)
    rows = {key: (row.steps, row.batch_size, row.rho, row.alpha) for key, row in config.stages.items()}
    assert rows == PAPER and {row.lr for row in config.stages.values()} == {1e-4}
    assert config.stages == COLOGEN_STAGES
    assert (config.pool.rank, config.pool.alpha, config.pool.scale) == (128, 256, 2)
    assert config.data.size == (512, 512) and config.base.dtype == "bfloat16"
    assert config.machine.gradient_checkpointing and config.flow.source_timestep == "same"
    assert config.long_prompts == "truncate"
    assert (config.flow.shift, config.sampling.shift) == ("none", "base")


@pytest.mark.parametrize("name", FLUX)
def test_every_stage_reads_the_papers_sets(name):
    sets = load_config(name).data.sets.values()
    serving = {
        stage: {part.layout for part in sets if stage in (part.tasks or LAYOUTS[part.layout].tasks)}
        for stage in PAPER
    }
    assert serving == SETS
    assert {part.path for part in sets if part.layout == "refcoco"} == {
        f"parquet:data/{name}/data/train-*.parquet" for name in ("refcoco", "refcocoplus", "refcocog")
    }


def test_compiled_blocks_are_not_computed_twice():
    with pytest.raises(
        ConfigError, match=r"machine: .*compile and gradient_checkpointing do not go together"
    ):
        load_config("flux_dev", ["machine.compile=true"])
    assert load_config("flux_dev", ["machine={compile: true}"]).machine.compile


def differing(first, second, prefix=""):
    """Dotted names of the settings in which two dumps differ."""
    names = set()
    for key in {*first, *second}:
        one, other = first.get(key), second.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            names |= differing(one, other, f"{prefix}{key}.")
        elif one != other:
            names.add(f"{prefix}{key}")
    return names


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("flux_kontext", {"name", "base.path", "sampling.guidance"}),
        (
            "flux2_klein",
            {"name", "base.path", "flow.shift_steps", "sampling.steps", "sampling.true_cfg_scale"},
        ),
        ("flux_schnell", {"name", "base.path", "base.max_text_tokens", "sampling.steps"}),
    ],
)
def test_what_sets_a_flux_config_apart_from_dev(name, changed):
    assert differing(load_config("flux_dev").model_dump(), load_config(name).model_dump()) == changed


def test_the_tiny_weights_are_trained_with_the_settings_of_flux_dev():
    full, tiny = (load_config(name).model_dump() for name in ("flux_dev", "flux_dev_tiny_weights"))
    for group in ("pool", "veteran", "flow", "optimizer", "dropout"):
        assert full[group] == tiny[group]
    assert full["base"]["dtype"] == tiny["base"]["dtype"]
    assert set(tiny["data"]["sets"]) == {"table", "shards", "folder"}  # sets are not merged
    height, width = tiny["data"]["size"]
    assert height != width


def write(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)


def test_a_config_extends_another_by_path_and_by_name_over_several_steps(tmp_path):
    write(
        tmp_path,
        first=f"extends: {tmp_path}/second.yaml\npool: {{rank: 5}}\n",
        second="extends: tiny\nname: second\npool: {rank: 4, gate: unit}\nstages: {editing: {steps: 3}}\n",
    )
    config, tiny = load_config(tmp_path / "first.yaml"), load_config("tiny")
    assert (config.name, config.pool.rank, config.pool.gate) == ("second", 5, "unit")
    assert config.pool.kernel == tiny.pool.kernel and config.base == tiny.base
    assert config.stages["editing"] == tiny.stages["editing"].model_copy(update={"steps": 3})
    assert config.stages["control"] == tiny.stages["control"]
    assert load_config(tmp_path / "first.yaml", ["pool.rank=6"]).pool.rank == 6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: flux_dew\n", "there is no config 'flux_dew'"),
        ("extends: [tiny]\n", r"extends should name a config, got \['tiny'\]"),
        ("extends: {folder}/a.yaml\n", r"in a circle: .*a\.yaml -> .*a\.yaml"),
    ],
)
def test_what_cannot_be_extended_is_refused(tmp_path, text, message):
    write(tmp_path, a=text.format(folder=tmp_path) if "{folder}" in text else text)
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "a.yaml")


def test_every_config_says_at_its_top_what_it_is_for():
    for path in CONFIGS.glob("*.yaml"):
        assert path.read_text().startswith("# ")


@pytest.fixture(scope="module")
def flux_dev():
    """FLUX.1-dev as it is published, without weights: 19 double and 38 single blocks, 12 B parameters."""
    with init_empty_weights():
        transformer = FluxTransformer2DModel(guidance_embeds=True)
    install_source_stream(transformer)
    return transformer


def test_the_pool_on_flux_dev_has_the_size_that_the_paper_implies(flux_dev):
    assert sum(parameter.numel() for parameter in flux_dev.parameters()) == 11_901_408_320
    settings = load_config("flux_dev").pool.model_dump()
    names = list(COLOGEN_STAGES)
    weave = prw.inject(flux_dev, target="kv", experts=names[:1], **settings)
    try:
        assert len(weave.sites) == 57
        site_names = [site.name for site in weave.sites]
        assert site_names == [f"transformer_blocks.{i}.attn" for i in range(19)] + [
            f"single_transformer_blocks.{i}.attn" for i in range(38)
        ]
        assert {(site.name.split(".")[0], len(site.modules)) for site in weave.sites} == {
            ("transformer_blocks", 2),
            ("single_transformer_blocks", 2),
        }
        gates = 2 * 3072 * 57  # one gate and one noise vector for a site
        trained = sum(parameter.numel() for parameter in weave.trainable_parameters())
        assert trained - gates == 89_653_248  # 89.65 M
        for name in names[1:]:
            weave.add_expert(name)
        pool = {key: value for key, value in flux_dev.state_dict().items() if ".prw_" in key}
        assert all(value.device.type == "meta" for value in pool.values())
        assert sum(value.numel() for value in pool.values()) == 5 * (89_653_248 + gates)  # 448.3 M + 1.75 M
        parts = ("to_k.prw_A", "to_k.prw_B", "to_k.prw_gate", "to_k.prw_noise", "to_v.prw_A", "to_v.prw_B")
        assert set(pool) == {
            f"{site}.{part}{number}.default.weight"
            for site in site_names
            for part in parts
            for number in range(5)
        }
    finally:
        weave.eject()
