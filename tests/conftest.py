"""Settings of all tests."""

import os

# Small models gain nothing from more threads, and on a busy machine two threads that wait for each other lose much.
os.environ.setdefault("OMP_NUM_THREADS", "1")
