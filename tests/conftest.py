"""Settings of all tests."""

import os
import tempfile

# Small models gain nothing from more threads, and on a busy machine two threads that wait for each other lose much.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Processes of one machine take turns through a file in its temporary folder; tests that run side by side do not.
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    own = tempfile.TemporaryDirectory(prefix=f"{worker}-", ignore_cleanup_errors=True)
    os.environ["TMPDIR"] = tempfile.tempdir = own.name
