"""Keeps the arrow files that `datasets` makes of parquet in a folder of the tests' own."""

import datasets
import pytest


@pytest.fixture(scope="session", autouse=True)
def arrow_cache(tmp_path_factory):
    """Where `datasets` puts them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("arrow"))
        yield
