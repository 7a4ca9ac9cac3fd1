"""How processes join: they wait for one another for hours, since rank 0 validates and downloads alone."""

from datetime import timedelta

from accelerate.utils import InitProcessGroupKwargs

from recipes.cologen.training.run import LONGEST_WAIT, join_processes


def test_processes_wait_for_hours_and_nothing_else_of_the_group_is_changed(config):
    handler = join_processes(config).init_handler
    assert isinstance(handler, InitProcessGroupKwargs)
    assert handler.to_kwargs() == {"timeout": LONGEST_WAIT}
    assert timedelta(hours=3) <= LONGEST_WAIT
