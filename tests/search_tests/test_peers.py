"""The comparison with other tools: what of it needs none of them. Their scripts are only imported here."""

import json
import shutil
import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_bert import tiny_bert as tiny

from search.bert.importance import Scores
from search.bert.surgery import Kept, cut
from search.definition import Range, SpaceSettings
from search.plan import Plan, Shape, encoder_parameters
from search.space import Space

ROOT = Path(__file__).parents[2]
PEERS = ROOT / "studies" / "benchmarks" / "peers"
SCRIPTS = sorted(PEERS.glob("with_*.py"))


@pytest.fixture(autouse=True)
def _found(monkeypatch):
    """Their folder, and the one of the other benchmarks, as where Python looks for modules."""
    for folder in (PEERS.parent, PEERS):
        monkeypatch.syspath_prepend(str(folder))


@pytest.fixture
def request_(tmp_path):
    """A request of the driver, with rows of a tiny vocabulary."""
    dice = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 9, (30,), generator=dice)
    rows = {
        "ids": torch.randint(1, 40, (int(lengths.sum()),), generator=dice, dtype=torch.int32),
        "types": torch.zeros(int(lengths.sum()), dtype=torch.uint8),
        "offsets": torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
        "labels": torch.randint(0, 3, (30,), generator=dice),
    }
    save_file(rows, tmp_path / "rows.safetensors")
    return {"rows": str(tmp_path / "rows.safetensors"), "pad_id": 0, "seed": 1, "count": 20, "out": str(tmp_path / "o")}


def tiny_bert(**sizes):
    """In the type in which tools make new layers."""
    return tiny(**sizes, dtype=torch.float32)


def narrowed(model, neurons):
    """The first neurons of each layer, as a tool that knows nothing of ours would leave them."""
    for layer, kept in zip(model.bert.encoder.layer, neurons, strict=True):
        up, down = layer.intermediate.dense, layer.output.dense
        up.weight, up.bias = torch.nn.Parameter(up.weight[:kept]), torch.nn.Parameter(up.bias[:kept])
        down.weight = torch.nn.Parameter(down.weight[:, :kept])
    return model


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_needs_its_tool_only_when_it_is_asked(script):
    code = f"import sys; sys.path.insert(0, {str(PEERS)!r}); import {script.stem}; print('search' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def test_every_script_has_pinned_requirements_and_all_have_one_torch():
    from environments import requirements, version

    assert len(SCRIPTS) == 4
    for script in SCRIPTS:
        files = requirements(script.stem.removeprefix("with_"))
        lines = [line for file in files for line in file.read_text().splitlines()]
        pinned = [line for line in lines if not line.startswith("#")]
        assert pinned
        assert all("==" in line for line in pinned)
        if any(line.startswith("transformers") for line in pinned):
            assert "torch==2.13.0" in pinned
    assert version("textpruner", "textpruner") == "1.1.post2"
    with pytest.raises(ValueError, match="nothing is not pinned"):
        version("textpruner", "nothing")


def test_batches_hold_the_rows_as_they_are(request_):
    from exchange import batches

    rows = load_file(request_["rows"])
    found = batches(request_, size=8)
    assert [len(batch["labels"]) for batch in found] == [8, 8, 4]
    whole = [rows["ids"][a:b].tolist() for a, b in zip(rows["offsets"], rows["offsets"][1:], strict=False)]
    seen = []
    for batch in found:
        for ids, mask, label in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
            row = ids[mask.bool()].tolist()
            assert whole.index(row) not in seen
            assert rows["labels"][whole.index(row)] == label
            seen.append(whole.index(row))
    assert seen != sorted(seen)
    again = [batch["input_ids"] for batch in batches(request_, size=8)]
    assert all(torch.equal(a["input_ids"], b) for a, b in zip(found, again, strict=True))


@pytest.mark.parametrize("share", [0.75, 0.5, 0.25, 0.125, 0.05])
def test_an_even_encoder_is_just_below_its_share(share):
    from exchange import even
    from transformers import BertConfig
    from ways import encoder_share

    config = BertConfig(hidden_size=384, num_attention_heads=12, intermediate_size=1536, num_hidden_layers=6)
    shape = Shape(6, 12, 32, 384, 1536, 30522, 512, 2, 2)
    heads, neurons = even(share, config)
    assert encoder_share(Plan((heads,) * 6, (neurons,) * 6), shape) <= share
    assert encoder_share(Plan((heads,) * 6, (neurons + 1,) * 6), shape) > share
    assert abs(heads / 12 - share) <= 0.5 / 12 or heads == 1
    assert even(1.0, config) == (12, 1536)


def test_what_a_peer_hands_over_is_the_same_model_in_our_class(request_):
    from exchange import encoder_size, hand_over
    from translated import rebuilt
    from with_textpruner import prune_heads

    dense = tiny_bert(layers=3, heads=4, head_size=4, neurons=24)
    theirs = narrowed(tiny_bert(layers=3, heads=4, head_size=4, neurons=24), (24, 5, 1))
    prune_heads(theirs.bert, {0: [0], 1: [1, 2, 3], 2: []})
    hand_over(theirs, request_)
    ours = rebuilt(Path(request_["out"]), dense)
    assert ours.config.heads_per_layer == [3, 1, 4]
    assert ours.config.neurons_per_layer == [24, 5, 1]
    assert encoder_size(ours) == encoder_size(theirs) < encoder_size(dense)
    probe = load_file(Path(request_["out"]) / "probe.safetensors")
    logits = probe.pop("logits")
    with torch.no_grad():
        torch.testing.assert_close(ours(**probe).logits, logits)
        assert (dense(**probe).logits - logits).abs().max() > 0.01


def test_putting_prune_heads_back_cuts_like_our_surgery():
    from with_textpruner import prune_heads

    dense = tiny_bert(layers=2, heads=4, head_size=4, neurons=8)
    theirs = tiny_bert(layers=2, heads=4, head_size=4, neurons=8)
    prune_heads(theirs.bert, {0: [1, 3], 1: [0]})
    ours = cut(dense, Kept(((0, 2), (1, 2, 3)), (tuple(range(8)),) * 2))
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        torch.testing.assert_close(theirs(input_ids=ids).logits, ours(input_ids=ids).logits)


def test_a_model_that_answers_otherwise_is_not_taken(request_):
    from exchange import hand_over
    from translated import MistranslatedError, rebuilt

    dense = tiny_bert(layers=2, heads=4, head_size=4, neurons=8)
    hand_over(tiny_bert(layers=2, heads=4, head_size=4, neurons=8), request_)
    file = Path(request_["out"]) / "model.safetensors"
    assert rebuilt(file.parent, dense) is not dense
    weights = load_file(file)
    name = "bert.encoder.layer.0.attention.self.query.weight"
    save_file({**weights, name: weights[name].roll(4, 0).contiguous()}, file)
    with pytest.raises(MistranslatedError, match="the logits differ by"):
        rebuilt(file.parent, dense)
    save_file({**weights, name: weights[name][:6].contiguous()}, file)
    with pytest.raises(MistranslatedError, match="layer 0 has 6 channels of attention: heads have 4"):
        rebuilt(file.parent, dense)
    save_file({key: value for key, value in weights.items() if key != "classifier.bias"}, file)
    with pytest.raises(MistranslatedError, match=r"not those of a pruned BERT.*classifier\.bias"):
        rebuilt(file.parent, dense)


def test_our_plan_of_a_size_is_tilted_and_just_below_it():
    from ways import encoder_share, matched

    shape = Shape(4, 4, 8, 32, 64, 100, 16, 2, 2)
    space = Space.of(SpaceSettings(neuron_block=8, heads=Range(low=0, high=1), neurons=Range(low=0, high=1)), shape)
    heads = torch.arange(16, dtype=torch.float64).reshape(4, 4)
    plan = matched(space, Scores(heads=heads, neurons=torch.arange(256, dtype=torch.float64).reshape(4, 64)), 0.4)
    assert 0.33 < encoder_share(plan, shape) <= 0.4
    assert plan.heads[3] > plan.heads[0]
    assert plan.neurons[3] > plan.neurons[0]
    assert encoder_parameters(plan, shape) < encoder_parameters(Plan.dense(shape), shape)
    whole = matched(space, Scores(heads=heads, neurons=torch.arange(256, dtype=torch.float64).reshape(4, 64)), 1.0)
    assert whole == Plan.dense(shape)


@pytest.fixture(scope="module")
def prepared(minilm, tmp_path_factory):
    """Rows, a teacher of two narrow layers, its logits."""
    from transformers import BertConfig, BertModel

    from search import Definition, LatencySettings, RecoverySettings, Task, TeacherSettings
    from search.artifacts import Artifacts
    from search.preparation import prepare

    folder = tmp_path_factory.mktemp("peers")
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    BertModel(BertConfig(max_position_embeddings=32, **size)).save_pretrained(folder / "checkpoint")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(minilm / name, folder / "checkpoint" / name)
    for split, count in (("train", 160), ("dev", 40)):
        texts = [f"{split} number {n} is {('bad', 'good')[n % 2]}\t{n % 2}\n" for n in range(count)]
        (folder / f"{split}.tsv").write_text("sentence\tlabel\n" + "".join(texts))
    definition = Definition(
        name="peers",
        model=str(folder / "checkpoint"),
        data=str(folder),
        task=Task(text=("sentence",), selection_rows=30, held_out="dev", max_tokens=16),
        space=SpaceSettings(neuron_block=16),
        teacher=TeacherSettings(epochs=1),
        recovery=RecoverySettings(steps=2, batch_size=8),
        latency=LatencySettings(batch=2, tokens=8, repeats=3, seconds=0.05),
    )
    return prepare(
        definition,
        Artifacts(folder / "artifacts"),
        device=torch.device("cpu"),
        own_objectives={},
        on_stage=lambda *_: None,
    )


def test_a_model_of_a_peer_is_trained_scored_and_measured_like_ours(prepared, tmp_path):
    from bench import Bench
    from exchange import even, hand_over, teacher
    from ways import Cell
    from with_textpruner import prune_heads

    asked = []

    class Peer:
        def ask(self, request):
            asked.append(request)
            theirs = teacher(request)
            heads, neurons = even(request["share"], theirs.config)
            gone = list(range(heads, 4))
            prune_heads(theirs.bert, {0: gone, 1: gone})
            hand_over(narrowed(theirs, (neurons, neurons)), request)
            return {"seconds": 1000.0}

    bench = Bench(prepared, tmp_path, iterations=4)
    theirs = bench.fill(Cell("textpruner", 0.5, 0, "cross-entropy"), Peer(), measure=True)
    ours = bench.fill(Cell("paretobert", 0.5, 0, "default"), None, measure=True)
    plain = bench.fill(Cell("uniform", 0.5, 0, "cross-entropy"), None, measure=False)
    assert theirs["heads"] == plain["heads"] == [2, 2]
    assert theirs["neurons"] == plain["neurons"]
    assert asked[0]["count"] == prepared.definition.importance.rows
    assert theirs["compute_s"] > 1000 > ours["compute_s"] > 0
    for one in (theirs, ours):
        assert 0.3 < one["encoder_share"] <= 0.5
        assert len(one["answers"]) == 40
        assert one["accuracy"] == one["answers"].count("1") / 40
        assert one["speed_up"] == pytest.approx(one["dense_latency_ms"] / one["latency_ms"], rel=0.01)
    again = bench.fill(Cell("textpruner", 0.5, 0, "default"), Peer(), measure=False)
    assert again["pruning_s"] == 1000.0
    assert len(asked) == 1  # the same cut, trained in another way
    assert not list((tmp_path / "models").iterdir())


def test_a_peer_answers_line_by_line_whatever_its_tool_prints(tmp_path):
    from environments import Peer, RefusedError, UnavailableError

    script = tmp_path / "peer.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(PEERS)!r})\n"
        "from exchange import serve\n"
        "def answer(request):\n"
        "    print('a bar of progress')\n"
        "    if request.get('exit'): raise SystemExit('gone')\n"
        "    if request['number'] < 0: raise ValueError('too small')\n"
        "    return {'half': 1 / request['number']}\n"
        "serve(answer)\n"
    )
    with Peer(Path(sys.executable), script, tmp_path / "log") as peer:
        assert peer.ask({"number": 2}) == {"half": 0.5}
        with pytest.raises(UnavailableError, match="ZeroDivisionError: division by zero") as failed:
            peer.ask({"number": 0})
        assert not isinstance(failed.value, RefusedError)
        with pytest.raises(RefusedError, match="ValueError: too small"):
            peer.ask({"number": -1})
        assert peer.ask({"number": 4}) == {"half": 0.25}
        with pytest.raises(UnavailableError, match="its process ended: gone"):
            peer.ask({"exit": True})
        with pytest.raises(UnavailableError, match="its process ended"):
            peer.ask({"number": 4})
    assert "a bar of progress" in (tmp_path / "log").read_text()


def test_an_environment_that_cannot_be_made_says_why(tmp_path, monkeypatch):
    import environments

    def run(command, **_how):
        code, told = (
            (1, "WARNING: slow\nERROR: No matching distribution found for x\n") if "pip" in command else (0, "")
        )
        return subprocess.CompletedProcess(command, code, "", told)

    monkeypatch.setattr(environments.subprocess, "run", run)
    with pytest.raises(environments.UnavailableError, match="cannot be made: ERROR: No matching distribution found"):
        environments.made("modelopt", tmp_path)


def test_an_environment_is_made_once_and_again_when_its_files_change(tmp_path, monkeypatch):
    import environments

    commands = []

    def run(command, **_how):
        commands.append(command)
        (tmp_path / "envs" / "tool").mkdir(parents=True, exist_ok=True)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(environments, "HERE", tmp_path)
    monkeypatch.setattr(environments.subprocess, "run", run)
    (tmp_path / "tool.txt").write_text("a==1\n")
    (tmp_path / "tool.no-deps.txt").write_text("b==1\n")
    for _ in range(2):
        assert environments.made("tool", tmp_path / "envs").parts[-3:] == ("tool", "bin", "python")
    assert ["--no-deps" in command for command in commands] == [False, False, True]
    (tmp_path / "tool.txt").write_text("a==2\n")
    environments.made("tool", tmp_path / "envs")
    assert len(commands) == 6


def model(share, selection, accuracy, compute_s=10.0):
    return {"encoder_share": share, "selection": selection, "accuracy": accuracy, "compute_s": compute_s}


def test_a_way_goes_on_until_its_compute_is_used_up():
    from searches import SIZES, until_used_up

    asked = []

    def make(share):
        asked.append(share)
        return None if share == 0.5 else model(share, 0.8, 0.7)

    points = until_used_up(make, spent_s=5.0, budget_s=25.0)
    assert asked == [0.03, 0.5, 0.75]
    assert [point.share for point in points] == [0.03, 0.75]
    assert until_used_up(make, spent_s=25.0, budget_s=25.0) == []
    asked.clear()
    until_used_up(make, spent_s=0.0, budget_s=1e9)
    assert sorted(asked) == sorted(SIZES)


def test_what_a_peer_reads_once_for_all_sizes_is_charged_once(tmp_path, monkeypatch):
    import gather
    from gather import Comparison
    from kept import Kept

    told = []

    class Bench:
        def fill(self, cell, _peer, *, measure):  # noqa: ARG002
            return {**model(cell.share, 0.8, 0.7, compute_s=40.0), "pruning_s": 18.0, "answers": "1"}

        def once(self, cell, _peer):
            told.append(cell.seed)
            return 17.0

    run = object.__new__(Comparison)
    run.quick, run.seeds, run.partial, run.bench = False, 2, False, Bench()
    run.kept, run.shared = Kept(tmp_path / "kept.jsonl"), SimpleNamespace(preparation={"teacher logits": 20.0})
    run.budget_s = 17 + 5 * 23 - 1  # what is read, and five models; four if each were charged for it
    monkeypatch.setattr(gather, "opened", lambda *_: partial(nullcontext, "a peer"))
    found = run.of_sizes("torch-pruning-taylor")
    assert told == [0, 1]
    assert [one["compute_s"] for one in found.models[0.5]] == [40.0, 40.0]  # cross-entropy needs no logits
    keys = [json.loads(line)["key"] for line in (tmp_path / "kept.jsonl").read_text().splitlines()]
    assert [[key.get("share") for key in keys].count(share) for share in (0.03, 0.62, 0.39)] == [2, 2, 0]
    assert found.volumes == pytest.approx([0.4 * 0.97] * 2)
    assert found.compared == pytest.approx([0.4 * 0.875] * 2)
    distilled = run.of_sizes("modelopt")
    assert [one["compute_s"] for one in distilled.models[0.5]] == [60.0, 60.0]


def test_a_size_that_a_peer_refuses_is_asked_for_once_and_one_that_failed_again(tmp_path, monkeypatch):
    import gather
    from environments import RefusedError, UnavailableError
    from gather import Comparison
    from kept import Kept

    asked = []

    class Bench:
        def fill(self, cell, _peer, *, measure):  # noqa: ARG002
            asked.append(cell.share)
            if cell.share < 0.1:
                raise RefusedError("too small")
            if cell.share == 0.125:
                raise UnavailableError("its process ended")
            return {**model(cell.share, 0.8, 0.7), "pruning_s": 1.0, "answers": "1"}

    monkeypatch.setattr(gather, "opened", lambda *_: partial(nullcontext, "a peer"))
    run = object.__new__(Comparison)
    run.quick, run.seeds, run.partial, run.budget_s, run.bench = False, 1, False, 1e9, Bench()
    run.shared = SimpleNamespace(preparation={"teacher logits": 20.0})
    for _ in range(2):
        run.kept = Kept(tmp_path / "kept.jsonl")
        found = run.of_sizes("textpruner")
        assert {found.why_not[share] for share in (0.03, 0.05, 0.07, 0.09)} == {"too small"}
        assert found.why_not[0.125] == "its process ended"
        assert 0.125 not in found.models
    assert [asked.count(share) for share in (0.03, 0.05, 0.1, 0.125)] == [1, 1, 1, 4]  # as a size, and for a front


def test_trials_that_a_longer_run_kept_are_left_out():
    from search_efficiency import Point, within

    kept = [Point(compute_s=8.0, share=share, selection=0.8, held_out=0.8) for share in (0.5, 0.4, 0.3)]
    assert [len(within(kept, 3.0, budget_s)) for budget_s in (3, 3.1, 11, 11.1, 19.1, 600)] == [0, 1, 1, 2, 3, 3]


def test_a_super_network_of_another_seed_comes_of_the_same_teacher_and_is_charged_once_and_for_all(
    prepared, tmp_path, monkeypatch
):
    import search_efficiency as efficiency

    from search.artifacts import Artifacts

    given = prepared.definition
    engine = given.engine.model_copy(update={"seed": 7, "ladder": (0.5,), "tilts": (), "trials": 1})
    base = given.model_copy(update={"engine": engine, "objectives": ("metric", "encoder_share")})
    artifacts = Artifacts(tmp_path / "artifacts")
    seed = efficiency.Seed(base, tmp_path, prepared, artifacts, {"importance": 2.0})
    monkeypatch.setattr(efficiency.pipeline, "ALWAYS", ("encoder_share", efficiency.HELD_OUT))
    points, preparation_s = efficiency.run_engine("supernet-recovered", seed, 1e-3 + preparation_of(seed))
    assert [one.name.split("-")[0] for one in artifacts.folder.iterdir() if one.is_dir()] == ["supernet"]
    assert preparation_s == preparation_of(seed) > 2.0
    assert len(points) == 1  # the dense model, with which it begins
    made = next(artifacts.folder.glob("supernet-*/model.safetensors"))
    before = made.stat().st_mtime_ns
    assert efficiency.run_engine("supernet-recovered", seed, preparation_of(seed)) == ([], preparation_s)
    assert made.stat().st_mtime_ns == before


def preparation_of(seed):
    """Seconds of a super-network's preparation, which is made where it is not there."""
    import search_efficiency as efficiency

    given = efficiency._of_arm("supernet-recovered", seed.base)
    return sum(seed.preparation.values()) + efficiency.with_supernet(given, seed)[1]


def test_the_hypervolume_is_that_of_what_the_selection_split_chose():
    from gather import volume
    from searches import point

    chosen = [point(model(0.5, 0.9, 0.9)), point(model(0.25, 0.8, 0.7))]
    assert volume(chosen) == pytest.approx(0.8 * 0.5 + 0.4 * 0.25)
    assert volume(chosen, smallest=0.4) == pytest.approx(0.8 * 0.5 + 0.4 * 0.1)
    # As small as the first, worse where it is selected, better where nothing selects: it does not count.
    lucky = point(model(0.5, 0.85, 1.0))
    assert volume([*chosen, lucky]) == pytest.approx(0.5)
    assert volume([]) == 0.0


def test_of_a_search_the_best_on_the_selection_split_within_a_size_counts():
    from searches import best_within

    trials = [model(0.5, 0.9, 0.6), model(0.24, 0.7, 0.9), model(0.2, 0.8, 0.5)]
    assert best_within(trials, 0.25)["encoder_share"] == 0.2
    assert best_within(trials, 0.5)["encoder_share"] == 0.5
    assert best_within(trials, 0.1) is None


def test_a_search_that_was_interrupted_is_told_again_what_is_known(tmp_path):
    import searches
    from environments import UnavailableError
    from kept import Kept

    dense = tiny_bert(layers=2, heads=4, head_size=4, neurons=64)
    space = Space.of(SpaceSettings(), Shape(2, 4, 4, 16, 64, 40, 12, 2, 3))
    prepared = SimpleNamespace(space=space, teacher=dense)
    trained = []

    class Bench:
        def scores(self, method, seed):
            assert (method, seed) == ("magnitude", 3)
            return Scores(heads=torch.ones(2, 4).double(), neurons=torch.ones(2, 64).double()), 5.0

        def scored(self, small, recovery, seed):
            assert (recovery, seed) == ("cross-entropy", 3)
            trained.append(list(small.config.heads_per_layer))
            return model(sum(trained[-1]) / 8, 0.8, 0.8)

    class Proposer:
        def __init__(self):
            self.count, self.told = 0, []

        def ask(self, request):
            if "tell" in request:
                self.told.append(request["tell"])
                return {"seconds": 0.5}
            self.count += 1
            return {"units": {name: min(units, self.count) for name, units in request["ask"].items()}, "seconds": 0.5}

    def run(budget_s):
        peer, kept = Proposer(), Kept(tmp_path / "kept.jsonl")
        how = {"seed": 3, "spent_s": 1.0, "budget_s": budget_s}
        return peer, searches.syne_tune(Bench(), prepared, peer, kept, "cross-entropy", **how)

    peer, found = run(18.0)
    assert [one["compute_s"] for one in found] == [10.0, 10.0]  # proposing is charged to nobody
    assert trained == [[1, 1], [2, 2]]
    with (tmp_path / "kept.jsonl").open("a") as file:
        file.write('{"key": {"half')
    peer, found = run(30.0)
    assert len(found) == 3
    assert trained == [[1, 1], [2, 2], [3, 3]]
    assert peer.told[0] == pytest.approx([0.2, 0.25])
    known = Kept(tmp_path / "kept.jsonl", adds=False)
    with pytest.raises(UnavailableError, match="not finished when this was printed"):
        known.get({"search": "another"}, dict)
    assert trained == [[1, 1], [2, 2], [3, 3]]


def test_rows_have_means_what_is_ahead_and_why_not():
    import comparison
    from compare import rows
    from gather import Found
    from ways import Way

    way = Way("a tool", "1.0", "cross-entropy")
    results = [{**model(0.5, 0.8, 0.5), "answers": "1010"}, {**model(0.48, 0.8, 0.75), "answers": "1110"}]
    better = [{**model(0.5, 0.8, 1.0), "answers": "1111"}, {**model(0.5, 0.8, 1.0), "answers": "1111"}]
    ours = Found({0.5: better}, {}, [], [], {})
    one, missing = rows(
        way, Found({0.5: results}, {0.5: better}, [0.2, 0.4], [0.1, 0.2], {0.25: "too small", 0.3: "no target"}), ours
    )
    assert one["encoder_share"] == 0.49
    assert one["accuracy_mean"] == 0.625
    assert one["accuracy_std"] == pytest.approx(0.1768)
    assert one["hypervolume"] == 0.3
    assert one["hypervolume_compared"] == 0.15
    assert one["accuracy_mean_our_recovery"] == 1.0
    assert one["latency_ms"] is None
    assert one["ours_ahead"]["mean"] == 0.375
    assert one["ours_ahead"]["verdict"] == "level"  # four rows prove nothing
    assert missing == {
        "name": "a tool", "version": "1.0", "recovery": "cross-entropy", "target": 0.25, "why_not": "too small",
    }  # fmt: skip
    whole = rows(way, Found({}, {}, [], [], {None: "no environment"}), ours)
    assert whole[0]["why_not"] == "no environment"
    text = "\n".join(comparison.lines([one, missing, *whole]))
    assert "not run: too small" in text
    assert "not run: no environment" in text
    json.dumps([one, missing, *whole])


def test_what_is_ahead_has_the_interval_of_the_rows_and_of_the_seeds():
    from comparison import ahead

    ours, other = [{"answers": "1" * 90 + "0" * 10}], [{"answers": "1" * 70 + "0" * 30}]
    found = ahead(ours, other)
    assert found["mean"] == 0.2
    assert found["interval"] == [0.12, 0.29]  # of rows drawn anew; 0.2 ± 1.96 · 0.04 where normal
    assert found["verdict"] == "ahead"
    assert ahead(other, ours)["verdict"] == "behind"
    weaker = {"answers": "1" * 75 + "0" * 25}
    assert ahead([*ours, weaker], other)["verdict"] == "level"  # two seeds that far apart prove nothing
    with pytest.raises(ValueError, match="answered 100 rows and the other 1"):
        ahead(ours, [{"answers": "1"}])


def test_the_ratio_is_to_the_best_peer_of_all_that_ran():
    from comparison import ratios

    found = ratios(0.6, {"a": 0.5, "b": 0.4, "c": 0.0})
    assert found["hypervolume_ratio_to_best_peer"] == 1.2
    assert found["best_peer"] == "a"
    assert found["hypervolume_ratios"] == {"a": 1.2, "b": 1.5, "c": None}
    assert ratios(0.6, {})["hypervolume_ratio_to_best_peer"] is None
