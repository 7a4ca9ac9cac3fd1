"""The source stream of a call: cached and shared keys and values, sizes, and what never reaches it."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from recipes.cologen.errors import PictureError, ShapeError
from recipes.cologen.flux.source_stream import SourceKV
from recipes.cologen.pipeline.pixels import as_picture, chosen_size, fitted, own_size


@pytest.fixture
def source_passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, torch.Tensor]]:
    """Rows and values of every source pass, one entry for each block that wrote."""
    seen: list[tuple[int, torch.Tensor]] = []
    write = SourceKV.write

    def counted(kept, site, pair):
        if site == "single_transformer_blocks.1.attn":
            seen.append((pair.value.shape[0], pair.value.clone()))
        write(kept, site, pair)

    monkeypatch.setattr(SourceKV, "write", counted)
    return seen


@pytest.mark.parametrize("negative", [{}, {"negative_prompt": "blue square", "true_cfg_scale": 2.0}])
@pytest.mark.parametrize("granularity", ["token", "sample"])
def test_cached_equals_uncached(build, tools, photo, source_passes, negative, granularity) -> None:
    pipe = build(pool={"granularity": granularity})
    asked = {"source_timestep": "zero", "num_inference_steps": 4, "num_images_per_prompt": 2, **negative}
    cached = tools.draw(pipe, "a red circle", photo, **asked)
    assert len(source_passes) == (2 if negative else 1)
    uncached = tools.draw(pipe, "a red circle", photo, cache_source=False, **asked)
    assert len(source_passes) == (10 if negative else 5)
    assert tools.difference(cached, uncached) == 0


def test_each_distinct_source_is_computed_once(pipe, tools, source_passes) -> None:
    one, other = tools.picture(0), tools.picture(1)
    pictures, prompts = [one, other, one.copy(), one], ["a red circle"] * 3 + ["blue square"]
    asked = {"source_timestep": "zero", "output_type": "latent"}
    shared = tools.draw(pipe, prompts, pictures, num_images_per_prompt=2, **asked).images
    assert [rows for rows, _ in source_passes] == [3]  # one, other, and one as modulated by the other prompt
    assert shared.shape[0] == 8
    generators = [torch.Generator().manual_seed(n) for n in range(4)]
    together = tools.draw(pipe, prompts, pictures, generator=generators, **asked).images
    for n in range(4):
        alone = torch.Generator().manual_seed(n)
        single = tools.draw(pipe, prompts[n], pictures[n], generator=alone, **asked).images
        torch.testing.assert_close(together[n], single[0], atol=1e-5, rtol=1e-5)


def test_noise_and_text_never_change_the_source_stream(pipe, tools, photo, source_passes) -> None:
    embeds, pooled, _ = pipe.encode_prompt("a red circle", max_sequence_length=12)
    asked = {"source_timestep": "zero", "pooled_prompt_embeds": pooled}
    for seed, text in ((0, embeds), (1, embeds), (0, torch.randn_like(embeds)), (2, embeds[:, :5])):
        tools.draw(pipe, None, photo, seed=seed, prompt_embeds=text, **asked)
    assert all(torch.equal(one, other) for (_, one), (_, other) in pairwise(source_passes))


def test_with_same_the_source_is_read_at_every_steps_own_time(pipe, tools, photo, source_passes) -> None:
    same, zero = (tools.draw(pipe, "a", photo, source_timestep=t) for t in ("same", "zero"))
    assert tools.difference(same, zero) > 1e-4 and len(source_passes) == 1
    assert tools.difference(same, tools.draw(pipe, "a", photo)) == 0  # the pipeline's own setting


def test_the_source_matters_and_experts_do(pipe, tools, photo) -> None:
    own = tools.draw(pipe, "a", photo)
    assert tools.difference(own, tools.draw(pipe, "a", tools.picture(1))) > 1e-4
    with pipe.weave.disabled():
        assert tools.difference(own, tools.draw(pipe, "a", photo)) > 1e-4


@pytest.mark.parametrize(("size", "asked", "drawn"), [
    ((48, 32), {}, (48, 32)),
    ((50, 90), {}, (48, 96)),
    ((100, 300), {"width": 64}, (16, 64)),
    ((48, 96), {"height": 32}, (32, 64)),
    ((64, 64), {"height": 32, "width": 48}, (32, 48)),
])  # fmt: skip
def test_the_sources_aspect_ratio_is_honoured(pipe, tools, size, asked, drawn) -> None:
    assert tools.draw(pipe, "a", tools.picture(0, *size), **asked).images.shape[1:3] == drawn


@given(st.integers(1, 4000), st.integers(1, 4000), st.sampled_from([4, 16]))
@settings(max_examples=60)
def test_a_size_is_whole_tokens_and_near_the_source(height, width, side) -> None:
    source = Image.new("1", (width, height))
    rows, columns = chosen_size(None, None, source, side, 1024, most=10**8)
    assert rows % side == columns % side == 0 and rows > 0 and columns > 0
    assert abs(rows - height) <= side and abs(columns - width) <= side
    assert chosen_size(rows, None, source, side, 1024)[0] == rows


@given(st.integers(1, 12000), st.integers(1, 12000), st.sampled_from([4, 16]), st.integers(256, 2**21))
def test_without_a_size_no_more_than_the_most_is_drawn(height, width, side, most) -> None:
    rows, columns = own_size(height, width, side, most)
    assert rows % side == columns % side == 0 and 0 < rows * columns <= most
    if height * width > most and min(rows, columns) >= 8 * side:  # as near to its shape as tokens allow
        assert abs(rows / columns * width / height - 1) < 0.3
        assert rows * columns > most / 2


def test_a_photo_of_12_megapixels_is_read_at_one_and_that_is_said(pipe, tools, caplog) -> None:
    assert own_size(3000, 4000, 16) == (880, 1168)
    large = np.asarray(Image.fromarray(tools.picture(0)).resize((96, 144)))
    asked = {"max_pixels": 48 * 32, "image": [[large, large]]}
    drawn = tools.draw(pipe, "a", output_routing=True, **asked)
    assert drawn.images.shape[1:3] == (48, 32)
    assert drawn.routing.grids == ((3, 2), (3, 2))  # further sources too
    assert caplog.text.count("a source is 96x144 pixels and no size was asked for: it is read at 32x48") == 2
    caplog.clear()
    assert tools.draw(pipe, "a", large, height=64, width=32).images.shape[1:3] == (64, 32)
    assert tools.draw(pipe, "a", large).images.shape[1:3] == (144, 96) and caplog.text == ""
    with pytest.raises(PictureError, match="max_pixels is 100; one token of this base covers 16x16"):
        tools.draw(pipe, "a", large, max_pixels=100)


def test_a_source_of_another_shape_keeps_its_middle() -> None:
    wide = np.zeros((10, 30, 3), dtype=np.uint8)
    wide[:, 10:20] = 255
    assert fitted(Image.fromarray(wide), (20, 20)).min() > 190  # no black from the sides


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_every_form_of_a_picture_is_the_same_picture(height, width, seed) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    floats = pixels.astype(np.float32) / 255
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    forms = [Image.fromarray(pixels), pixels, floats, tensor, torch.from_numpy(floats).permute(2, 0, 1)]
    assert all(np.array_equal(np.asarray(as_picture(form, "image")), pixels) for form in forms)
    assert np.array_equal(
        np.asarray(as_picture(pixels[..., 0] > 127, "mask"))[..., 1] > 0, pixels[..., 0] > 127
    )


NO_PICTURES = {
    "a path": ("photo.png", PictureError, "image: expected a PIL picture.*got str"),
    "a size": (np.zeros((0, 4, 3), np.uint8), PictureError, r"array of shape \[0, 4, 3\]"),
    "alpha": (np.zeros((4, 4, 4), np.uint8), PictureError, r"array of shape \[4, 4, 4\]"),
    "a range": (np.full((4, 4, 3), 255.0), PictureError, "floats from 255 to 255"),
    "integers": (np.zeros((4, 4, 3), np.int64), PictureError, "array of int64"),
    "too many": ([np.zeros((16, 16, 3), np.uint8)] * 3, PictureError, "got 3 pictures for 2 prompts"),
    "numbers": ([[1, 2], [3, 4]], PictureError, "image: expected a PIL picture.*got int"),
}


@pytest.mark.parametrize(("image", "kind", "message"), NO_PICTURES.values(), ids=NO_PICTURES)
def test_what_is_no_picture_is_refused(pipe, image, kind, message) -> None:
    with pytest.raises(kind, match=message):
        pipe(["a", "a"], image)


def test_a_side_that_is_no_whole_token_is_refused(pipe, photo) -> None:
    with pytest.raises(ShapeError, match="width must be a multiple of 16 for this base, got 40"):
        pipe("a", photo, width=40)
