"""Routing: from hidden states and router vectors to decisions and their shares; pure functions."""

from prw.routing.decision import RoutingDecision
from prw.routing.features import router_features
from prw.routing.groups import Groups
from prw.routing.policies import decide, noisy_logits, top_1, top_k
from prw.routing.record import Routing
from prw.routing.scores import router_logits
from prw.routing.shares import newest_indicator
from prw.routing.statistics import Collapse, RoutingStatistics, statistics_of
from prw.routing.tally import Tally

__all__ = [
    "Collapse",
    "Groups",
    "Routing",
    "RoutingDecision",
    "RoutingStatistics",
    "Tally",
    "decide",
    "newest_indicator",
    "noisy_logits",
    "router_features",
    "router_logits",
    "statistics_of",
    "top_1",
    "top_k",
]
