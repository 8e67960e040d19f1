"""From a checkpoint to a model and back: safetensors and JSON only, and every reason why one cannot be used.

    name on the hub --download--> folder --check config.json--> --check names of the weights--> model (CPU, evaluation)
    folder ----------------------^

Only config.json and model.safetensors are read. Code that a checkpoint brings along is never run.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from search.bert.families import FAMILIES, family_of
from search.bert.pruned import PrunedBertForSequenceClassification, plan_of, shape_of
from search.errors import UserError
from search.plan import Plan, Shape

__all__ = [
    "PrunedBertForSequenceClassification",
    "fingerprint",
    "folder_of",
    "is_fine_tuned",
    "load",
    "load_dense",
    "read_shape",
    "save",
]

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
)
SHIPPED = "pruned_"
"""What the model type of an exported model begins with (`search.deploy.shipped`)."""
_OF_SHIPPED = ("model_type", "auto_map", "architectures")
"""Fields of a config that name the class that reads it: here that is always this package's own."""


def load_dense(
    path_or_name: str | Path, *, labels: int, attention: str | None = None, seed: int = 0
) -> PreTrainedModel:
    """Load a checkpoint as a dense classifier.

    An encoder without a classifier gets a new one, with what its family has between the two (BERT's pooler) where it
    has none; their weights depend on `seed` alone. The global random state is left as it was.

    Args:
        path_or_name: Folder of a checkpoint, or a name on the hub.
        labels: Number of classes; 1 for a regression.
        attention: Attention implementation, `"sdpa"` or `"eager"`; None leaves the choice to transformers.
        seed: Seed of new weights.

    Returns:
        The classifier: float32, on the CPU, in evaluation mode.

    Raises:
        UserError: If the checkpoint cannot be had, is of no family, lacks weights, is pruned already, or is
            fine-tuned for another number of labels.
    """
    folder = folder_of(path_or_name)
    config = _read_config(folder)
    if plan_of(config) != Plan.dense(shape_of(config)):
        raise UserError(f"the checkpoint '{path_or_name}' is pruned already; name the dense one that it was cut from")
    family = family_of(config)
    new: tuple[str, ...] = (*family.classifier, *family.between)
    if is_fine_tuned(folder):
        found, new = _weight_shapes(folder)[family.classifier[0]][0], ()
        _check_labels(path_or_name, found, labels)
    config.num_labels = labels
    config.problem_type = "regression" if labels == 1 else "single_label_classification"
    return _load(folder, config, may_be_new=new, attention=attention, dtype=torch.float32, seed=seed)


def _check_labels(path_or_name: str | Path, found: int, labels: int) -> None:
    if found != labels:
        raise UserError(
            f"the checkpoint '{path_or_name}' is fine-tuned for {found} labels and the task has {labels}; "
            f"name a checkpoint for {labels} labels, or an encoder that has no classifier yet"
        )


def read_shape(path_or_name: str | Path, *, labels: int, fine_tuned: bool = False) -> Shape:
    """Sizes of a checkpoint as a classifier, from its config.json alone.

    Args:
        path_or_name: Folder of a checkpoint, or a name on the hub; of that only config.json is downloaded.
        labels: Number of classes.
        fine_tuned: Whether it is to be a classifier already.

    Raises:
        UserError: If the checkpoint cannot be had or is of no family, or if it is to be a classifier, and its config
            says of another number of labels.
    """
    config = _read_config(folder_of(path_or_name, files=(CONFIG,)))
    if fine_tuned:
        _check_labels(path_or_name, int(config.num_labels or 0), labels)
    config.num_labels = labels
    return shape_of(config)


def save(model: PreTrainedModel, folder: str | Path) -> None:
    """Write config.json and model.safetensors.

    Args:
        model: A dense or pruned classifier.
        folder: Where to; made if it is missing, files of the same names are replaced.
    """
    with quiet():
        model.save_pretrained(folder)


def load(folder: str | Path, *, attention: str | None = None) -> PreTrainedModel:
    """Load what `save` wrote, bit by bit the same weights.

    Args:
        folder: Folder of a dense or pruned classifier.
        attention: Attention implementation, `"sdpa"` or `"eager"`; None leaves the choice to transformers.

    Returns:
        The classifier: in the data type that was saved, on the CPU, in evaluation mode.

    Raises:
        UserError: If the folder or a file in it is missing, or the weights do not fit the config.
    """
    path = _local(Path(folder))
    return _load(path, _read_config(path), may_be_new=(), attention=attention, dtype="auto", seed=0)


def is_fine_tuned(path_or_name: str | Path) -> bool:
    """Tell whether a checkpoint's weights hold a classifier.

    Args:
        path_or_name: Folder of a checkpoint, or a name on the hub.

    Raises:
        UserError: If the checkpoint cannot be had or read.
    """
    folder = folder_of(path_or_name)
    return family_of(_read_config(folder)).classifier[0] in _weight_shapes(folder)


def fingerprint(path_or_name: str | Path) -> str:
    """Name the content of a checkpoint, so that what was computed from it is found again and never mixed up.

    Args:
        path_or_name: Folder of a checkpoint, or a name on the hub.

    Returns:
        For a folder the SHA-256, in hexadecimal, of the SHA-256 digests of config.json and model.safetensors one after
        the other; it moves with the folder. For a hub name `name@commit`.

    Raises:
        UserError: If the checkpoint cannot be had.
    """
    folder = folder_of(path_or_name)
    if not Path(path_or_name).expanduser().is_dir():
        return f"{path_or_name}@{folder.name}"  # the hub's cache keeps one folder per commit
    digest = hashlib.sha256()
    for name in (CONFIG, WEIGHTS):
        with (folder / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def folder_of(path_or_name: str | Path, *, files: tuple[str, ...] = (CONFIG, WEIGHTS, *TOKENIZER)) -> Path:
    """Find the folder of a checkpoint; one on the hub is downloaded into the hub's cache, its tokenizer included.

    Args:
        path_or_name: Folder of a checkpoint, or a name on the hub. A folder of that name comes first.
        files: Names of the files to download from the hub.

    Returns:
        A folder that holds config.json and model.safetensors.

    Raises:
        UserError: If there is no such folder, a file in it is missing, or the hub cannot deliver it.
    """
    path = Path(path_or_name).expanduser()
    if path.is_dir() or isinstance(path_or_name, Path) or not _may_be_hub_name(path_or_name):
        return _local(path)
    try:
        folder = snapshot_download(path_or_name, allow_patterns=list(files))
    except (OSError, ValueError) as error:  # network, unknown name, missing permission, full disk: all are OSError
        raise UserError(
            f"the checkpoint '{path_or_name}' is no folder here and the hub did not deliver it "
            f"({type(error).__name__}); check the name and the network, or name a folder"
        ) from error
    return _local(Path(folder)) if WEIGHTS in files else Path(folder)


def _may_be_hub_name(text: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", text) is not None


def _local(folder: Path) -> Path:
    """Refuse a folder that is missing or lacks a file."""
    if not folder.is_dir():
        raise UserError(
            f"the checkpoint folder '{folder}' does not exist; name a folder with {CONFIG} and {WEIGHTS}, "
            "or a checkpoint on the hub"
        )
    if not (folder / CONFIG).is_file():
        raise UserError(f"the checkpoint folder '{folder}' has no {CONFIG}; name a folder that save_pretrained wrote")
    if not (folder / WEIGHTS).is_file():
        pickled = (folder / "pytorch_model.bin").exists()
        there = "only pytorch_model.bin, which can run code when it is read" if pickled else f"no {WEIGHTS}"
        raise UserError(
            f"the checkpoint folder '{folder}' has {there}; weights are read from {WEIGHTS} only, "
            "so save the model once with save_pretrained of transformers 5"
        )
    return folder


def _read_config(folder: Path) -> PreTrainedConfig:
    """Read config.json and refuse what is not an encoder of a known family with absolute positions."""
    path = folder / CONFIG
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        kind = values.get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"the file '{path}' holds no config ({error}); name the folder of a checkpoint") from None
    kind = kind.removeprefix(SHIPPED) if isinstance(kind, str) else kind
    if kind not in FAMILIES:
        raise UserError(
            f"the file '{path}' has model_type {kind!r}; what can be pruned is of type {', '.join(FAMILIES)}: "
            "name such a checkpoint"
        )
    if values.get("is_decoder") or values.get("add_cross_attention"):
        raise UserError(f"the file '{path}' describes a decoder; only an encoder classifies, name one")
    positions = values.get("position_embedding_type", "absolute")
    if positions != "absolute":
        raise UserError(
            f"the file '{path}' has position_embedding_type {positions!r}; transformers 5 computes 'absolute' only, "
            "name such a checkpoint"
        )
    try:
        own = {name: value for name, value in values.items() if name not in _OF_SHIPPED}
        config: PreTrainedConfig = FAMILIES[kind].config.from_dict(own)
        plan_of(config)
    except (ValueError, TypeError, ArithmeticError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"the file '{path}' cannot be used ({reason}); name a folder that was not edited") from None
    return config


def _weight_shapes(folder: Path) -> dict[str, list[int]]:
    """Shapes of all weights by name, without reading them."""
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 # no mapping
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"the file '{folder / WEIGHTS}' is not a readable safetensors file ({error}); save the model again"
        ) from None


def _load(
    folder: Path,
    config: PreTrainedConfig,
    *,
    may_be_new: tuple[str, ...],
    attention: str | None,
    dtype: torch.dtype | str,
    seed: int,
) -> PreTrainedModel:
    """Load the weights into the model that `config` describes; only `may_be_new` may be missing from the file."""
    _weight_shapes(folder)  # a file that is not readable is told here
    options: dict[str, Any] = {"attn_implementation": attention, "dtype": dtype, "use_safetensors": True}
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # of the CPU alone: torch.manual_seed reaches every device
        loaded: Any = family_of(config).model.from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # they are told below, in one sentence
            output_loading_info=True,
            **options,
        )
    model: PreTrainedModel = loaded[0]
    report = loaded[1]
    wrong = {name for name in report["missing_keys"] if name not in may_be_new}
    wrong |= {name for name, *_ in report["mismatched_keys"]}
    if wrong:
        raise UserError(
            f"the file '{folder / WEIGHTS}' does not fit its {CONFIG}: {len(wrong)} weights are missing or of another "
            f"shape, the first is {min(wrong)!r}; name the folder of a whole checkpoint"
        )
    return model


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' progress bars and load reports: what matters in them is checked here."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
