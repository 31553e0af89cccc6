"""One thread per process and no outside traffic, set before torch or Ray are imported.

The machine that runs the tests has few cores, and sums in another order are other sums: all
promises of bit equality are for a fixed number of threads.
"""

import os

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("MPLBACKEND", "Agg")
# A stray profile of the person who runs the tests must never reach a real bucket.
os.environ["AWS_EC2_METADATA_DISABLED"] = "true"

from hypothesis import settings  # noqa: E402  (after the environment is set)

# A busy machine is no failure: what takes too long is caught by pytest's own timeout.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")
