"""Settings of all tests."""

import os

from hypothesis import settings

# A time limit would judge the machine, not the code; in CI the same examples are drawn every time.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")
