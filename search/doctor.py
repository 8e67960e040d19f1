"""What this machine has: versions, devices, energy sources, and where the packages were imported from."""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table

PACKAGES = (
    "paretobert", "torch", "transformers", "datasets", "optuna", "optuna-dashboard", "sqlalchemy", "pandas", "plotly",
    "scipy", "scikit-learn", "moocore", "nvidia-ml-py", "pydantic", "psycopg",
)  # fmt: skip
"""Distributions whose versions matter."""


def report() -> RenderableType:
    """The tables that `paretobert doctor` prints."""
    return Group(_versions(), _devices(), _energy(), _imports())


def _versions() -> Table:
    table = _table("package", "version")
    table.add_row("python", f"{sys.version.split()[0]} on {platform.platform()}")
    for name in PACKAGES:
        try:
            table.add_row(name, version(name))
        except PackageNotFoundError:
            table.add_row(name, "not installed")
    return table


def _devices() -> Table:
    import torch

    table = _table("device", "what it is")
    table.add_row("cpu", f"{platform.machine()}, {os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads")
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        table.add_row(f"cuda:{number}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    if torch.backends.mps.is_available():
        table.add_row("mps", "Apple GPU")
    return table


def _energy() -> Table:
    import torch

    from objectives import sources

    table = _table("energy source", "readable", "why")
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    for source in sources(device):
        table.add_row(source.name, "yes" if source.readable else "no", source.reason)
    return table


def _imports() -> Table:
    import objectives
    import search

    table = _table("imported", "from")
    for package in (search, objectives):
        table.add_row(package.__name__, str(Path(str(package.__file__)).parent))
    return table


def _table(*headers: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for header in headers:
        table.add_column(header, overflow="fold")
    return table
