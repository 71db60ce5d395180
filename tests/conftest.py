"""Settings of all tests."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers

# The same examples every time, no clock: a failure is a finding, never chance. `--hypothesis-profile=search` looks for
# new ones.
settings.register_profile(
    "suite", derandomize=True, deadline=None, max_examples=30, suppress_health_check=list(HealthCheck), print_blob=True
)
settings.register_profile("search", settings.get_profile("suite"), derandomize=False, max_examples=2000)
settings.load_profile("suite")

# Hypothesis mixes numbers that stand in the source of loaded modules into what it draws, so that examples would differ
# with what each test process has happened to import, and with every commit.
assert callable(providers._get_local_constants)
providers._get_local_constants = lambda: providers._local_constants
