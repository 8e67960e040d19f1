"""The plain way to prune a BERT in a trial, as one would write it first: everything afresh, with the library's Trainer.

    checkpoint ─► tokenise ─► magnitudes ─► cut ─► Trainer: cross-entropy, fp32, dropout, all weights ─► Trainer.predict

`search_efficiency.py` and `throughput.py` measure the project against it. The fine-tuned dense model is given.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Clock

from search.bert.choose import choose
from search.bert.importance import importance
from search.bert.splitting import Rows, Splits
from search.bert.surgery import cut
from search.definition import RecoverySettings
from search.plan import Plan


@dataclass(frozen=True)
class Result:
    """One plain trial.

    Attributes:
        selection: Accuracy on the selection split.
        held_out: Accuracy on the held-out split; None where it was not asked for.
        compute_s: What the trial cost, without the scoring of the held-out split.
        stages: Seconds by stage, of the wall clock.
    """

    selection: float
    held_out: float | None
    compute_s: float
    stages: dict[str, float] = field(default_factory=dict)


def trial(
    teacher: Path,
    splits: Splits,
    plan: Plan,
    settings: RecoverySettings,
    *,
    max_tokens: int,
    seed: int,
    device: torch.device,
    hold_out: bool = True,
) -> Result:
    """Run one.

    Args:
        teacher: Folder of the fine-tuned dense model, with its tokenizer.
        splits: The rows, as text.
        plan: What to keep.
        settings: Steps, batch size, learning rate, warm-up and weight decay; nothing else of it is used.
        max_tokens: Longest sequence.
        seed: Of the batches' order and of dropout.
        device: Where to train.
        hold_out: Whether to score the held-out split as well.
    """
    from transformers import AutoTokenizer, DataCollatorWithPadding, PrinterCallback, Trainer, TrainingArguments
    from transformers import logging as messages

    from search.bert.checkpoint import load

    messages.set_verbosity_error()
    messages.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    clock, stages = Clock(device), {}
    with _timed(stages, "load"):
        model = load(teacher)
        tokenizer = AutoTokenizer.from_pretrained(teacher)
    with _timed(stages, "tokenise"):
        train, selection = (_tokenised(rows, tokenizer, max_tokens) for rows in (splits.train, splits.selection))
    with _timed(stages, "magnitudes"):
        scores = importance("magnitude", model, [], seed=seed)
    with _timed(stages, "cut"):
        small = cut(model, choose(plan, scores))
    arguments = TrainingArguments(
        output_dir=str(teacher.parent / "trainer"),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=64,
        learning_rate=settings.learning_rate,
        warmup_steps=round(settings.warmup * settings.steps),
        weight_decay=settings.weight_decay,
        lr_scheduler_type="linear",
        seed=seed,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        use_cpu=device.type == "cpu",
    )
    trainer = Trainer(
        model=small, args=arguments, train_dataset=train, data_collator=DataCollatorWithPadding(tokenizer)
    )
    trainer.remove_callback(PrinterCallback)
    if settings.steps:
        with _timed(stages, "train"):
            trainer.train()
    with _timed(stages, "score"):
        accuracy = _accuracy(trainer, selection)
    compute_s = clock.seconds()
    held_out = _accuracy(trainer, _tokenised(splits.held_out, tokenizer, max_tokens)) if hold_out else None
    return Result(accuracy, held_out, compute_s, stages)


def _tokenised(rows: Rows, tokenizer: Any, max_tokens: int) -> Sequence[dict[str, Any]]:
    texts = [text[0] for text in rows.texts]
    encoded = tokenizer(texts, truncation=True, max_length=max_tokens)
    return [
        {"input_ids": ids, "attention_mask": mask, "labels": label}
        for ids, mask, label in zip(encoded["input_ids"], encoded["attention_mask"], rows.labels, strict=True)
    ]


def _accuracy(trainer: Any, rows: Sequence[dict[str, Any]]) -> float:
    given = trainer.predict(rows)
    return float((np.argmax(given.predictions, axis=1) == given.label_ids).mean())


@contextmanager
def _timed(stages: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    stages[name] = round(time.perf_counter() - start, 3)
