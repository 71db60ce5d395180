"""Settings of all tests."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# The same examples every time, no clock: a failure is a finding, never chance. `--hypothesis-profile=search` looks for
# new ones.
settings.register_profile(
    "suite", derandomize=True, deadline=None, max_examples=30, suppress_health_check=list(HealthCheck), print_blob=True
)
settings.register_profile("search", settings.get_profile("suite"), derandomize=False, max_examples=2000)
settings.load_profile("suite")
