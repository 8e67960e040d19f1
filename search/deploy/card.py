"""The model card of an exported folder: what it is, how to use it, what was measured and how, what it cannot do.

Everything in it comes from the folder's `paretobert.json`; nothing is measured here.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from search.definition import METRICS, RecoverySettings
from search.deploy import shipped

About = Mapping[str, Any]

SHOWN = ("encoder_share", "parameters", "encoder_parameters", "macs", "latency_ms", "energy_mj", "stored_bytes")
"""Quantities that stand in the card where the study measured them, beside the task's metrics."""

NAMES = {
    "model.safetensors": "PyTorch, float32",
    shipped.BF16: "PyTorch, bfloat16",
    shipped.ONNX: "ONNX Runtime, float32",
    shipped.INT8: "ONNX Runtime, dynamic int8",
}


def text(about: About) -> str:
    """The card in Markdown, with the front matter that the hub reads.

    Args:
        about: What `paretobert.json` says (`search.deploy.export`).
    """
    parts = [_front_matter(), _what(about), _use(about), _numbers(about), _files(about), _lineage(about)]
    return "\n".join([*parts, _limits(about)])


def _front_matter() -> str:
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "pipeline_tag: text-classification",
            "tags: [pruned, bert, paretobert]",
            "---",
            "",
        ]
    )


def _what(about: About) -> str:
    of, plan = about["plan"]["of"], about["plan"]
    rank = "" if plan["rank"] is None else f" The word embeddings have rank {plan['rank']} of {of['hidden']}."
    words = "" if about["vocabulary"] is None else f" The vocabulary is reduced: {about['vocabulary']}."
    layers = "\n".join(
        f"| {layer} | {heads} of {of['heads']} | {neurons} of {of['neurons']} |"
        for layer, (heads, neurons) in enumerate(zip(plan["heads"], plan["neurons"], strict=True))
    )
    pair = "pairs of texts" if about["task"]["texts"] == 2 else "texts"
    labels = ", ".join(f"`{label}`" for label in about["task"]["labels"])
    does = f"that gives {pair} a number, {labels}," if about["task"]["regression"] else f"of {pair} into {labels}"
    kind = "model" if about["task"]["regression"] else "classifier"
    return f"""# {about["study"]}, trial {about["trial"]}

A {kind} {does}: cut from `{about["checkpoint"]}`, layer by layer, and trained back.
The matrices are really smaller; nothing is masked.{rank}{words}

| layer | attention heads | feed-forward neurons |
|---|---|---|
{layers}
"""


def _use(about: About) -> str:
    pair = about["task"]["texts"] == 2
    given = '{"text": "first text", "text_pair": "second text"}' if pair else '"some text"'
    lines = [
        "## Use",
        "",
        "With transformers 5 and torch; `trust_remote_code` runs the short file "
        f"`{about['modelling']}` in this folder, which you can read first:",
        "",
        "```python",
        "from transformers import pipeline",
        "",
        'classify = pipeline("text-classification", model="FOLDER", trust_remote_code=True)',
        f"classify({given}, truncation=True)",
        "```",
        "",
        "With paretobert, which runs no code from the folder:",
        "",
        "```sh",
        "paretobert predict FOLDER < texts.txt" + ("   # first and second text with a tab between" if pair else ""),
        "```",
        "",
    ]
    if shipped.BF16 in about["files"]:
        lines += [
            "In bfloat16:",
            "",
            "```python",
            "AutoModelForSequenceClassification.from_pretrained(",
            '    "FOLDER", variant="bf16", dtype=torch.bfloat16, trust_remote_code=True',
            ")",
            "```",
            "",
        ]
    graphs = [name for name in (shipped.ONNX, shipped.INT8) if name in about["files"]]
    if graphs:
        encode = 'tokenizer.encode("first text", "second text")' if pair else 'tokenizer.encode("some text")'
        lines += [
            "With ONNX Runtime and tokenizers alone:",
            "",
            "```python",
            "import numpy as np, onnxruntime, tokenizers",
            "",
            'tokenizer = tokenizers.Tokenizer.from_file("FOLDER/tokenizer.json")',
            f"tokenizer.enable_truncation({about['task']['max_tokens']})",
            f'session = onnxruntime.InferenceSession("FOLDER/{graphs[0]}")',
            f"encoded = {encode}",
            "columns = (encoded.ids, encoded.attention_mask, encoded.type_ids)",
            'names = ("input_ids", "attention_mask", "token_type_ids")',
            "inputs = {name: np.array([column], dtype=np.int64) for name, column in zip(names, columns)}",
            "logits = session.run(None, inputs)[0]",
            "```",
            "",
        ]
    return "\n".join(lines)


def _numbers(about: About) -> str:
    metric = about["task"]["metric"]
    metrics = [name for name in METRICS if name in about["recorded"]]
    further = [name for name in about["recorded"] if name.startswith("latency_ms.")]
    names = [*metrics, *(name for name in SHOWN if name in about["recorded"]), *further]
    rows = [_row(name, about["recorded"][name], about["dense"].get(name)) for name in names]
    said, confirmed = about["rebuilt"]["difference"], about["confirmed"]
    whose = (
        f"As trial {about['trial']} was recorded, in {about['precision']}. The weights were made again from the record"
        + (f", and score the same: {metric} {_number(about['rebuilt']['value'])}." if said is None else f": {said}.")
    )
    if confirmed is not None:
        several = confirmed["trainings"] > 1
        whose = (
            f"As trial {about['trial']} was confirmed, in {about['precision']}: {metric} on {confirmed['rows']:,} "
            "held-out rows that the search never saw"
            + (
                f", the mean of {confirmed['trainings']} trainings with the full budget. These are the weights of the "
                f"one with the best {metric} on the selection split, {_number(about['rebuilt']['value'])}."
                if several
                else f". On the selection split these weights have {_number(about['rebuilt']['value'])}."
            )
        )
    return "\n".join(
        [
            "## Numbers",
            "",
            whose,
            "",
            "| quantity | this model | dense model | how |",
            "|---|---|---|---|",
            *rows,
            "",
            f"Conditions: {_listed(about['conditions'])}.",
            "",
        ]
    )


def _row(name: str, quantity: Mapping[str, Any], dense: Mapping[str, Any] | None) -> str:
    interval = quantity.get("interval")
    spread = "" if interval is None else f" ({_number(interval[0])} to {_number(interval[1])})"
    unit = f" {quantity['unit']}" if quantity["unit"] and quantity["unit"] != name else ""
    beside = "" if dense is None else f"{_number(dense['value'])}{unit}"
    conditions = quantity.get("conditions") or {}
    how = quantity["source"] + (f"; {_listed(conditions)}" if conditions else "")
    return f"| {name} | {_number(quantity['value'])}{unit}{spread} | {beside} | {how} |"


def _files(about: About) -> str:
    metric = about["task"]["metric"]
    rows = []
    for name, facts in about["files"].items():
        latency = facts.get("latency_ms", {})
        took = latency.get("unavailable", "")
        if "value" in latency:
            took = f"{_number(latency['value'])} ms ({_listed(latency['conditions'])})"
        compared = "" if "largest_difference" not in facts else f"{facts['largest_difference']:.1e}"
        score = _number(facts[metric]["value"]) if metric in facts else ""
        rows.append(f"| `{name}` | {NAMES[name]} | {facts['bytes'] / 1e6:.1f} MB | {score} | {took} | {compared} |")
    return "\n".join(
        [
            "## Files",
            "",
            f"{metric} on the selection split ({about['rows']['selection']} rows) and latency of one batch, both "
            "computed when the folder was written; the largest difference of a logit to the recovered model.",
            "",
            f"| file | run by | size | {metric} | latency | difference |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


def _lineage(about: About) -> str:
    recovery = about["recovery"]
    how = "nothing was cut: it is the fine-tuned dense model itself"
    if recovery is not None:
        trained = (
            f"{recovery['steps']} steps of {recovery['batch_size']} rows at a learning rate of "
            f"{recovery['learning_rate']:g}, {100 * recovery['distillation']:.0f} % distilled, seed {about['seed']}"
        )
        cut_from = RecoverySettings.model_validate(recovery).cut_from
        how = f"{cut_from}, {trained if recovery['steps'] else 'not trained after that'}"
    lines = {
        "study": f"{about['study']}, trial {about['trial']} of {about['trials']}",
        "definition": f"SHA-256 `{about['definition']}`",
        "checkpoint": f"`{about['checkpoint']}`; fine-tuned dense model `{about['content']['teacher'][:20]}`",
        "data": f"`{about['data']}`; {about['rows']['train']} training rows, `{about['content']['rows'][:20]}`",
        "recovery": how,
        "made by": f"{about['made_by']}, {_listed(about['versions'])}",
    }
    return "\n".join(["## Where it comes from", "", *(f"- {name}: {value}" for name, value in lines.items()), ""])


def _limits(about: About) -> str:
    tokens = about["task"]["max_tokens"]
    optimistic = (
        f"Scores are those of the selection split, on which {about['trials']} trials were compared: they are "
        "optimistic. Score the model on data that the search never saw before you rely on it (`paretobert confirm`)."
    )
    held_out = "The held-out rows come from the same source as the training rows; other texts may score lower."
    lines: Sequence[str] = [
        optimistic if about["confirmed"] is None else held_out,
        f"It was trained on sequences of at most {tokens} tokens; longer texts are cut off (`truncation=True`).",
        "It knows the texts and labels of its training data; on others nothing was measured, fairness included.",
        "Latency and energy hold for the conditions named beside them; another device, batch, length, number type or "
        "backend can order models differently.",
        "The plain classes of transformers cannot hold it: layers differ in width.",
    ]
    return "\n".join(["## Limits", "", *(f"- {line}" for line in lines), ""])


def _number(value: float) -> str:
    """A number with four digits that count, whole numbers with their thousands."""
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) >= 10 else f"{value:.4g}"


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items())
