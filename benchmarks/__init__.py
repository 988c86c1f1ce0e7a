"""Speed, as ratios against the raw parts measured in the same run. `make bench` runs all of it."""
