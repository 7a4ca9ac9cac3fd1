"""Opening a run: its base by the config, and nothing of training or the report is needed for it."""

import subprocess
import sys

import pytest
import torch

from recipes.cologen.errors import BaseModelError
from recipes.cologen.runs.loading import load_base
from tests.recipes.cologen.training.conftest import make_config

IMPORTS = """
import sys
import recipes.cologen.runs.folder, recipes.cologen.runs.loading, recipes.cologen.runs.lock
import recipes.cologen.runs.reader
unneeded = "recipes.cologen.training", "recipes.cologen.report"
print([name for name in sys.modules if name.startswith(unneeded)])
"""


def test_a_run_is_opened_without_training_and_report() -> None:
    ran = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"


def test_a_missing_base_is_refused(tmp_path):
    with pytest.raises(BaseModelError, match="no FLUX base"):
        load_base(make_config(tmp_path / "absent"), torch.device("cpu"))
