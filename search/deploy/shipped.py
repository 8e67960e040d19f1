"""What lies in an exported folder, and how it gets there: all at once, or not at all.

    config.json                 what is left of each layer, and where the class is that reads it
    model.safetensors           the weights; model.bf16.safetensors beside it, where asked for
    modeling_pruned_bert.py     that class, for transformers without this package
    tokenizer.json, ...         the tokenizer
    model.onnx, model.int8.onnx   the same model for ONNX Runtime, where asked for
    paretobert.json             where it comes from and what was measured, for programs
    README.md                   the same for people

The config names a model type of its own. A program that knows nothing of it says so; with the type of the dense model
it would load what fits, and fill up what is missing with random weights.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from search.bert.checkpoint import CONFIG, SHIPPED, TOKENIZER, WEIGHTS, save
from search.bert.pruned import plan_of
from search.definition import Task
from search.errors import UserError

ABOUT = "paretobert.json"
CARD = "README.md"
ONNX = "model.onnx"
INT8 = "model.int8.onnx"
BF16 = "model.bf16.safetensors"


_OF_A_MACHINE = ("name_or_path", "tokenizer_file", "special_tokens_map_file", "is_local", "local_files_only")
"""Settings of a tokenizer that say where it was loaded from."""


@dataclass(frozen=True)
class Modelling:
    """The file that lets transformers load a family of pruned models.

    Attributes:
        source: Its name without the ending in `search.deploy.modeling`.
        config: Name of the config's class in it.
        model: Name of the classifier's class in it.
    """

    source: str
    config: str
    model: str

    @property
    def module(self) -> str:
        """Its name without the ending in an exported folder, as transformers names such files."""
        return f"modeling_{self.source}"


MODELLING: Mapping[str, Modelling] = {
    "bert": Modelling("pruned_bert", "PrunedBertConfig", "PrunedBertForSequenceClassification"),
    "distilbert": Modelling("pruned_distilbert", "PrunedDistilBertConfig", "PrunedDistilBertForSequenceClassification"),
    "electra": Modelling("pruned_electra", "PrunedElectraConfig", "PrunedElectraForSequenceClassification"),
    "roberta": Modelling("pruned_roberta", "PrunedRobertaConfig", "PrunedRobertaForSequenceClassification"),
}
"""The file of each family, by the dense model's `model_type`."""


def names_of(task: Task) -> tuple[str, ...]:
    """Names of what the logits stand for: the labels, or the number that a regression predicts."""
    return task.labels or (task.label,)


def modelling_of(model: PreTrainedModel) -> Modelling:
    """The modelling file of a model's family.

    Raises:
        UserError: If there is none.
    """
    kind = model.config.model_type
    if kind not in MODELLING:
        raise UserError(
            f"the model is of type {kind!r}, which cannot be exported yet; what can is of type {', '.join(MODELLING)}"
        )
    return MODELLING[kind]


def write_model(model: PreTrainedModel, folder: Path, task: Task) -> str:
    """Write weights, config and the modelling file.

    Args:
        model: The model.
        folder: Where to.
        task: The task: names of its labels, in the order of the logits, or that of the number of a regression.

    Returns:
        Name of the modelling file.

    Raises:
        UserError: If there is no such file for the model's family.
    """
    family = modelling_of(model)
    save(model, folder)
    values = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    plan = plan_of(model.config)
    values |= {
        "model_type": SHIPPED + values["model_type"],
        "architectures": [family.model],
        "auto_map": {
            "AutoConfig": f"{family.module}.{family.config}",
            "AutoModelForSequenceClassification": f"{family.module}.{family.model}",
        },
        "heads_per_layer": list(plan.heads),
        "neurons_per_layer": list(plan.neurons),
        "id2label": {str(number): name for number, name in enumerate(names_of(task))},
        "label2id": {name: number for number, name in enumerate(names_of(task))},
        "problem_type": "regression" if task.is_regression else "single_label_classification",
    }
    values.pop("_name_or_path", None)
    write_json(folder / CONFIG, values)
    _share(folder / WEIGHTS)
    file = f"{family.module}.py"
    shutil.copyfile(Path(__file__).parent / "modeling" / f"{family.source}.py", folder / file)
    return file


def write_bf16(model: PreTrainedModel, folder: Path) -> None:
    """Write the weights in bfloat16 beside the others, as the variant `bf16` of transformers.

    Args:
        model: The model in bfloat16.
        folder: Where `write_model` wrote it in float32.
    """
    inner = folder / "bf16"
    save(model, inner)
    (inner / WEIGHTS).replace(folder / BF16)
    shutil.rmtree(inner)
    _share(folder / BF16)


def _share(weights: Path) -> None:
    """Let who may read the config read the weights, which safetensors writes for their owner alone."""
    weights.chmod((weights.parent / CONFIG).stat().st_mode)


def write_tokenizer(source: Path, folder: Path, *, max_tokens: int) -> None:
    """Copy a tokenizer, and have it give what the model was trained on: token types, and padding on the right.

    Args:
        source: Folder of the tokenizer.
        folder: Where to.
        max_tokens: Longest sequence in tokens that the model was trained with: what `truncation=True` cuts to.
    """
    for name in TOKENIZER:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for name in _OF_A_MACHINE:
        settings.pop(name, None)
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    write_json(file, settings | {"model_max_length": max_tokens, "model_input_names": inputs, "padding_side": "right"})


def write_json(file: Path, values: Mapping[str, Any]) -> None:
    """Write values as JSON for people to read."""
    file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_about(folder: Path) -> dict[str, Any]:
    """What an exported folder says about itself.

    Raises:
        UserError: If it is not an exported folder.
    """
    if not folder.is_dir():
        raise UserError(f"the folder '{folder}' does not exist; name one that `paretobert export` wrote")
    try:
        values = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"the folder '{folder}' has no readable {ABOUT} ({type(error).__name__}); name one that "
            "`paretobert export` wrote"
        ) from None
    return dict(values)
