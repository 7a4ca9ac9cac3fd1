"""Parameters and memory of the real FLUX.1-dev, and the cards and changes that are named for it."""

from pathlib import Path

import pytest

from recipes.cologen.config.run import REPOSITORY, parse_config
from recipes.cologen.costs.activations import StepBytes
from recipes.cologen.costs.gpus import UnknownGpuError, gpu_memory, memory_size
from recipes.cologen.costs.memory import estimate_memory, is_tight, load_of, memory_of, what_would_fit
from recipes.cologen.costs.parameters import count_parameters
from recipes.cologen.costs.shapes import find_shape, pixels_per_token, read_shape
from recipes.cologen.errors import BaseModelError

FLUX_DEV = REPOSITORY / "recipes/cologen/assets/shapes/flux_dev"


TINY = REPOSITORY / "recipes/cologen/assets/tiny_flux"


def described(base):
    settings = {"path": str(base), "dtype": "bfloat16"}
    config = parse_config(
        {"name": "run", "base": settings, "pool": {"rank": 128}, "validation": {"samples": 0}}
    )
    shape = read_shape(base)
    return config, shape, count_parameters(shape, config.pool)


@pytest.fixture(scope="module")
def tiny():
    return described(TINY)


def test_the_numbers_of_flux_dev_are_the_papers():
    _, _, counts = described(FLUX_DEV)
    assert (counts.sites, counts.per_expert) == (57, 89_653_248)
    assert 5 * counts.per_expert == 448_266_240
    assert counts.router_per_expert == 57 * 2 * 3072
    assert {name: round(count / 1e6) for name, count in counts.base.items()} == {
        "transformer": 11_901,
        "vae": 84,
        "text_encoder": 123,
        "text_encoder_2": 4_762,
    }


def test_memory_grows_with_batch_size_and_resolution_and_falls_with_checkpointing(tiny):
    config, shape, counts = tiny

    def total(micro_batch, side, **changes):
        load = load_of(config, micro_batch, (side, side), experts=5)._replace(**changes)
        return estimate_memory(config, shape, counts, load)

    small, large = total(1, 32, checkpointing=True), total(2, 32, checkpointing=True)
    assert small.total < large.total < total(2, 64, checkpointing=True).total
    assert small.total < total(1, 32).total
    parts = {part.name: part.bytes for part in small.parts}
    assert parts["transformer"] == 2 * counts.base["transformer"]
    one = counts.per_expert + counts.router_per_expert
    assert (parts["experts and routers"], parts["gradients"], parts["optimiser"]) == (
        20 * one,
        4 * one,
        8 * one,
    )
    assert small.floor == large.floor == sum(parts.values()) - parts["activations"] - parts["reserve"]


def test_the_change_that_is_named_fits_and_the_one_before_did_not(tiny):
    config, shape, counts = tiny
    load = load_of(config, 4, (32, 32), experts=5)._replace(share=4)  # else the others would wait encoded
    asked = estimate_memory(config, shape, counts, load).total
    change = what_would_fit(config, shape, counts, load, available=asked - 1)
    assert change is not None and change.settings == ("machine.gradient_checkpointing=true",)
    for more in ("machine.encoders=offload", "machine.micro_batch=2"):
        tighter = what_would_fit(config, shape, counts, load, available=change.memory.total - 1)
        assert tighter is not None and tighter.settings == (*change.settings, more)
        assert tighter.memory.total < change.memory.total
        change = tighter
    assert what_would_fit(config, shape, counts, load, available=10**6) is None


def test_quantisation_small_states_and_an_average_are_counted(tiny):
    config, shape, counts = tiny
    other = parse_config(
        config.model_dump()
        | {
            "base": {**config.base.model_dump(), "quantisation": "nf4"},
            "optimizer": {"name": "adamw_8bit", "ema_decay": 0.999},
            "machine": {"encoders": "offload"},
        }
    )
    load = load_of(config, 1, (16, 16), experts=2)
    before, after = (
        {part.name: part.bytes for part in estimate_memory(run, shape, counts, load).parts}
        for run in (config, other)
    )
    assert before["transformer"] - after["transformer"] == pytest.approx(counts.linear * 1.484, rel=1e-3)
    assert after["running average"] == after["gradients"] == before["gradients"]
    assert after["optimiser"] * 3.9 < before["optimiser"]
    assert after["VAE"] == after["text encoders"] == 0 < before["text encoders"]


def parts_of(run, shape, counts, load):
    return {part.name: part for part in estimate_memory(run, shape, counts, load).parts}


def with_machine(config, **machine):
    return parse_config(config.model_dump() | {"machine": machine})


def test_copies_of_experts_that_kernels_keep_are_counted_from_two_experts_on(tiny):
    config, shape, counts = tiny
    one, five = (parts_of(config, shape, counts, load_of(config, 1, (16, 16), n)) for n in (1, 5))
    assert "stacked experts" not in one
    assert five["stacked experts"].bytes == 5 * counts.per_expert * 2  # bfloat16
    loops = config.model_copy(update={"pool": config.pool.model_copy(update={"kernel": "reference"})})
    assert "stacked experts" not in parts_of(loops, shape, counts, load_of(loops, 1, (16, 16), 5))


def test_the_five_experts_of_flux_dev_are_stacked_in_900_megabytes():
    config, _, counts = described(FLUX_DEV)
    load = load_of(config, 1, (512, 512), 5)
    parts = {part.name: part.bytes for part in memory_of(config, counts, load, StepBytes(0, 0, 0)).parts}
    assert parts["stacked experts"] == 896_532_480


def test_encoders_that_visit_the_device_are_counted_while_they_encode(tiny):
    config, _, counts = tiny
    load = load_of(config, 1, (16, 16), 1)
    encoding = StepBytes(encoding=7, saved=0, training=5, waiting=2, validation=0)
    visiting = {
        "resident": 0,
        "offload": 2 * sum(count for name, count in counts.base.items() if name != "transformer"),
        "sequential_offload": 2 * counts.largest_layer,
    }
    assert 0 < visiting["sequential_offload"] < visiting["offload"]
    for encoders, weights in visiting.items():
        run = with_machine(config, encoders=encoders)
        parts = {part.name: part for part in memory_of(run, counts, load, encoding).parts}
        assert parts["activations"].bytes == 7 + 2 + weights
        assert "while they are encoded" in parts["activations"].note
        assert (parts["text encoders"].bytes == 0) == (encoders != "resident")
    drawing = encoding._replace(validation=10**6)
    parts = {part.name: part for part in memory_of(config, counts, load, drawing).parts}
    assert parts["activations"].bytes == 10**6 and "in validation" in parts["activations"].note


def test_a_load_knows_validation_quantisation_and_the_share_of_a_step():
    base = {"path": str(TINY), "dtype": "bfloat16", "quantisation": "torchao_int8"}
    settings = {"name": "run", "base": base, "machine": {"micro_batch": 2, "encoders": "offload"}}
    run = parse_config(settings | {"stages": {"inpainting": {"batch_size": 24}}})
    load = load_of(run, 2, (16, 16), 1, processes=3)
    assert (load.quantisation, load.validated, load.share, load.ahead) == ("torchao_int8", 2, 8, True)
    silent = parse_config(settings | {"validation": {"samples": 0}})
    assert load_of(silent, 2, (16, 16), 1).validated == 0
    elsewhere = parse_config(settings | {"data": {"source": "folder:x"}})  # holds nothing out
    assert load_of(elsewhere, 2, (16, 16), 1).validated == 0
    whole = parse_config(settings | {"machine": {}, "validation": {"samples": 20}})
    assert load_of(whole, 2, (16, 16), 1).validated == 20


def test_what_leaves_less_than_a_tenth_is_tight():
    assert [is_tight(total, 100) for total in (89, 91, 100, 101)] == [False, True, True, False]


@pytest.mark.parametrize(("name", "guided"), [("FLUX.1-dev", True), ("FLUX.1-schnell", False)])
def test_a_published_base_that_is_not_here_has_its_shape(tmp_path, name, guided):
    shape = find_shape(f"black-forest-labs/{name}", tmp_path / "none", max_text_tokens=256)
    assert (shape.blocks, shape.max_text_tokens, pixels_per_token(shape.folder)) == ((19, 38), 256, 16)
    assert shape.transformer["guidance_embeds"] is guided


def test_cards_are_found_by_a_part_of_their_name_and_sizes_are_read():
    assert gpu_memory("NVIDIA GeForce RTX 4090") == ("RTX 4090", 24 * 10**9)
    assert gpu_memory("h200") == ("H200", 141 * 10**9)
    with pytest.raises(UnknownGpuError, match="several GPUs fit 'A100'; one of A100 40GB, A100 80GB"):
        gpu_memory("A100")
    with pytest.raises(UnknownGpuError, match="no GPU 'RTX 4091'; one of RTX 4090"):
        gpu_memory("RTX 4091")
    assert (memory_size("24GB"), memory_size("1.5 GiB"), memory_size("80")) == (24e9, 1.5 * 2**30, 80e9)
    for wrong in ("", "GB", "-1GB", "inf", "nan", "24 apples"):
        with pytest.raises(UnknownGpuError, match="--gpu-memory"):
            memory_size(wrong)


def test_a_folder_that_is_no_base_is_refused(tmp_path: Path):
    with pytest.raises(BaseModelError, match=r"no FLUX base at .*base\.path"):
        read_shape(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "Else"}')
    with pytest.raises(BaseModelError, match="Else without transformer, vae"):
        read_shape(tmp_path)
    (tmp_path / "model_index.json").write_bytes((FLUX_DEV / "model_index.json").read_bytes())
    with pytest.raises(BaseModelError, match=r"tokenizer_config\.json cannot be read"):
        read_shape(tmp_path)
