"""What `import prw` leaves alone: rooms that know a host are imported by those who need them."""

import subprocess
import sys

PROGRAM = """
import sys
import prw
heavy = {"diffusers", "matplotlib", "transformers.trainer", "transformers.trainer_callback", "tensorboard"}
print(sorted(heavy & set(sys.modules)), "prw.integrations.transformers" in sys.modules)
"""


def test_importing_prw_imports_no_host() -> None:
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert run.stdout.split("\n")[0] == "[] False"
