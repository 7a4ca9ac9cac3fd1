"""Routing: from hidden states and router vectors to decisions and their shares; pure functions."""

from prw.routing.decision import RoutingDecision, newest_indicator, per_token, top_1, top_k
from prw.routing.recording import Routing
from prw.routing.router import (
    SampleGroups,
    as_batch,
    decide,
    noisy_logits,
    router_features,
    router_logits,
)
from prw.routing.statistics import Collapse, RoutingStatistics, Tally, statistics_of

__all__ = [
    "Collapse",
    "Routing",
    "RoutingDecision",
    "RoutingStatistics",
    "SampleGroups",
    "Tally",
    "as_batch",
    "decide",
    "newest_indicator",
    "noisy_logits",
    "per_token",
    "router_features",
    "router_logits",
    "statistics_of",
    "top_1",
    "top_k",
]
