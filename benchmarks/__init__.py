"""Speed, as ratios against the raw parts measured in the same run. `make bench` runs all of it."""

import sys
from pathlib import Path

# the servers and the installation that the tests break
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
