"""The summary of a pool: sites, experts, settings, parameters and bytes."""

import pytest
import torch

import prw

NAMES = ("a", "b", "c", "d")


@pytest.fixture
def grown(make_plain, wake):
    """A pool of four, its input, and the folder-less base."""
    base = make_plain()
    weave = prw.inject(base, rank=3, experts=list(NAMES))
    wake(weave)
    base.eval()
    return weave, base, torch.randn(2, 5, 8)


def test_the_summary_counts(host):
    weave = prw.inject(host.model, rank=4, experts=["a", "b"])
    assert f"2 experts at {host.sites} sites" in weave.summary()
    training = sum(p.numel() for p in weave.trainable_parameters())
    assert f"{2 * training:,} in the pool, {training:,} train" in weave.summary()


def test_the_summary_says_what_is_there(grown):
    weave, base, _ = grown
    text = weave.summary()
    pool = [p for n, p in base.named_parameters() if ".prw_" in n]
    training = sum(p.numel() for p in pool if p.requires_grad)
    total = sum(p.numel() for p in pool)
    assert "4 experts at 2 sites of Plain" in text
    assert "2 x to_k, to_v: 8 -> 8, 8" in text
    assert f"{total:,} in the pool, {training:,} train, {total - training:,} frozen" in text
    assert f"bytes: {4 * total:,} float32; training {4 * training:,} float32" in text
    base.blocks[0].to_k.prw_A0["default"].half()
    assert f"{2 * 24:,} float16 + {4 * (total - 24):,} float32" in weave.summary()
    weave.freeze()
    assert "newest frozen too" in weave.summary()
