"""What is logged between two logs: the mean over its forwards, without pads, and the alarm."""

import logging

import pytest
import torch

import prw
from prw.integrations.transformers import RoutingMeter
from prw.routing import Routing, top_1

STAGE = prw.Stage("new", rho=0.8, alpha=0.5, steps=1, lr=1.0)


@torch.no_grad()
def test_it_measures_what_counts_since_it_was_read(caplog):
    meter = RoutingMeter(STAGE, threshold=0.95)
    assert meter.read() == {}
    losses = []
    for kept in (1, 3):
        routing = Routing(("old", "new"))
        routing.add("site", top_1(torch.tensor([[[0.0, 9.0], [9.0, 0.0], [9.0, 0.0]]]), "prob"))
        mask = torch.arange(3).unsqueeze(0) < kept
        losses.append(meter.loss(routing, mask).item())
        assert losses[-1] == prw.veteran_loss(routing, 0.8, 0.5, mask=mask).item()
    measured = meter.read()
    assert meter.statistics.site_items.tolist() == [4]
    assert (measured["prw/share"], measured["prw/collapsed_sites"]) == (0.5, 0.0)
    assert measured["prw/veteran_loss"] == pytest.approx(sum(losses) / 2)
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        meter.loss(routing, torch.tensor([[False, True, True]]))
        assert meter.read()["prw/collapsed_sites"] == 1.0
    assert "site (100% to the veteran old)" in caplog.text
    assert meter.read() == {}
