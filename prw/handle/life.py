"""The life of an expert: added, renamed, frozen, removed, merged; and the summary of what there is."""

from __future__ import annotations

from prw.errors import PoolError
from prw.handle.hold import EMPTY, Hold
from prw.handle.summary import describe
from prw.layers import explained
from prw.storage import pool_parameters
from prw.tuner import freeze_newest, grow, merge, remove, rename


class Life(Hold):
    """The part of the handle that changes which experts there are."""

    def add_expert(self, name: str, init: str | None = None) -> None:
        """Freeze what is there and add an expert that trains.

        Args:
            name: Name of the expert; usually that of its stage.
            init: None or "zero" starts at zero output, so nothing but the router's softmax changes. A
                veteran's name starts from a copy of its A and B, with its ranks.

        Raises:
            ConfigError: if the name cannot be used or is taken.
            PoolError: if `init` names no expert.
        """
        self._note_stage_end()
        grow(self._layers(), self.adapter, self.config, name, init)

    def rename_expert(self, old: str, new: str) -> None:
        """Give an expert another name. Its place, weights and whether it trains stay.

        Folders saved before keep the old name: they load into a fresh model, but are no earlier stage of this
        pool any more. A `Curriculum` knows its stages by name, so it must be renamed alike.

        Raises:
            PoolError: if there is no expert `old`.
            ConfigError: if `new` cannot be used or is taken.
        """
        rename(self._layers(), self.adapter, self.config, old, new)

    def freeze(self) -> None:
        """Freeze the newest expert too: its stage has ended, and nothing trains until an expert is added."""
        self._note_stage_end()
        freeze_newest(self._layers(), self.adapter, self.config)

    def remove_expert(self, name: str) -> None:
        """Take an expert out of the pool, its router vectors with it.

        The others keep their order, weights and logits; later ones move up a place. What went to the expert
        goes to the likeliest of the rest, and with `gate="prob"` the rest weigh more. If it was the newest,
        nothing trains until an expert is added; else the newest goes on training.

        `as_of` an earlier expert is unaffected. `as_of` a later one is that stage's model with this expert
        taken out. Folders saved while the pool had it load into a fresh model only.

        Raises:
            PoolError: if the pool has no such expert, or a `with` block of it is open.
        """
        remove(self._layers(), self.adapter, self.config, name)

    def merge(self, as_of: str | None = None) -> None:
        """Fold the pool into the base's weights and take it out: the same outputs, to a rounding, at no cost.

        That is exact only where no weight depends on the input: a pool of one expert; the pool as of its
        first; or `gate="unit"` with `top_k` of at least the pool's size, where every expert always acts.

        Args:
            as_of: Merge the pool as it was when this expert's stage ended; later experts are lost, so save
                first. None means all of it.

        Raises:
            UnsupportedError: if it would not be exact: the router depends on the input, the base is quantised
                or 16-bit, PEFT wraps the model, ...; says why, and nothing has changed.
            PoolError: if the pool is empty, has no such expert, is switched off, or a `with` block is open.
        """
        if not self.experts:
            raise PoolError(EMPTY)
        size = len(self.experts) if as_of is None else self.pool.index(as_of) + 1
        merge(self.model, self._layers(), self.adapter, size, self._trained_before)

    def summary(self) -> str:
        """Describe the pool: sites, experts, settings, kernel and why, parameters, bytes."""
        parameters = pool_parameters(self._layers(), self.adapter).values()
        layers = self._layers()
        kernel = explained(next(iter(layers.values())).sites[self.adapter])
        return describe(type(self.model).__name__, self.config, self.sites, list(parameters), kernel)
