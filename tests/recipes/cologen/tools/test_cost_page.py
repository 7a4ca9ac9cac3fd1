"""The page of costs is what the script writes, and what it extrapolates is what a trace gives."""

from types import SimpleNamespace

import pytest

from recipes.cologen.config.run import parse_config
from recipes.cologen.costs.memory import estimate_memory, load_of
from recipes.cologen.costs.parameters import count_parameters
from recipes.cologen.costs.shapes import find_shape
from recipes.cologen.tools import cost_page


@pytest.mark.slow
def test_the_page_is_what_the_script_writes(tmp_path) -> None:
    assert cost_page.main(["--output", str(tmp_path / "costs.md")]) == 0
    assert cost_page.PAGE.read_text(encoding="utf-8") == (tmp_path / "costs.md").read_text(encoding="utf-8")


def test_parameters_on_the_page_are_those_of_the_architecture() -> None:
    text = cost_page.PAGE.read_text(encoding="utf-8")
    shape = find_shape("black-forest-labs/FLUX.1-dev", cost_page.REPOSITORY / "nowhere")
    pool = parse_config({"name": "x", "base": {"path": "x"}, "pool": {"rank": 64}}).pool
    one = count_parameters(shape, pool).per_expert
    assert f"| 64 | {one / 1e6:.2f} M | {5 * one / 1e6:.1f} M | {20 * one / 1e9:.2f} GB |" in text


def test_memory_of_larger_batches_is_that_of_a_trace() -> None:
    config = parse_config(
        {
            "name": "x",
            "base": {"path": "recipes/cologen/assets/tiny_flux"},
            "data": {"source": "folder:x", "size": [16, 24]},
            "stages": {"inpainting": {"steps": 1, "batch_size": 8}},
            "machine": {"encoders": "offload"},
        }
    )
    shape = find_shape(config.base.path, config.base_path)
    counts = count_parameters(shape, config.pool)
    load = load_of(config, 1, (16, 24), 1)
    steps = [
        cost_page.step_bytes(shape, config.pool, load._replace(batch=batch)) for batch in cost_page.TRACED
    ]
    found = cost_page.Study(config, shape, counts, {(False, False): (steps[0], steps[1])})
    traced = estimate_memory(config, shape, counts, load._replace(batch=5))
    assert traced.load.ahead and traced.load.share == 8
    assert found.memory(5, checkpointing=False).total == pytest.approx(traced.total, rel=1e-3)


def test_what_fits_is_marked_where_it_is_tight_or_needs_layers_one_by_one(monkeypatch) -> None:
    totals = {"offload": 10, "sequential_offload": 5}

    class Found:
        def memory(self, size, checkpointing, *, quantisation, encoders):
            return SimpleNamespace(total=totals[encoders] + size)

    assert cost_page.fitting(Found(), 100, None) == "64"
    assert cost_page.fitting(Found(), 75, None) == "64*"
    assert cost_page.fitting(Found(), 70, None) == "64 L*"
    assert cost_page.fitting(Found(), 5, None) == "none"
