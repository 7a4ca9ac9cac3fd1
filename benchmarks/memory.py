"""Counts activation memory on the CPU: what autograd keeps, and the most that is allocated at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile

MIB = 2**20


def saved_bytes(forward: Callable[[], object], parameters: Iterable[Tensor]) -> int:
    """Count what a forward keeps for its backward: each storage once, whole, those of parameters not.

    A view keeps its whole storage alive, so that is what counts. Tensors that a custom function keeps past
    `save_for_backward` are not seen here; `peak_bytes` sees them.
    """
    known = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    kept: dict[int, tuple[int, Tensor]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            # Held until counted, so that no address is given out twice.
            kept[storage.data_ptr()] = storage.nbytes(), tensor.detach()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = forward()
    total = sum(size for size, _ in kept.values())
    del outputs
    return total


def peak_bytes(run: Callable[[], object]) -> int:
    """Give the most that was allocated at once above the level at the start, as torch's profiler saw it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiled:
        run()
    events = profiled.profiler.kineto_results.events()
    changes = sorted(
        (event.start_ns(), order, event.nbytes())
        for order, event in enumerate(events)
        if event.name() == "[memory]"
    )
    level = peak = 0
    for _, _, change in changes:
        level += change
        peak = max(peak, level)
    return peak
