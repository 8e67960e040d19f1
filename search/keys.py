"""What a study's artifacts are determined by, and the hashes that they are found under.

Nothing here computes: a command that only looks for an artifact needs neither torch nor transformers.
"""

from collections.abc import Mapping
from typing import Any

from search.artifacts import digest
from search.definition import Definition

SUPERNET = "supernet"
"""Kind of the artifact that holds a super-network (`search.supernets`)."""

LOGITS = "logits"
"""What a study's content names where the teacher's logits are not computed as `auto` says: `fp32`."""

TABLE = "table"
"""Kind of the artifact that holds the table of measured parts (`search.tables`)."""


def wanted(definition: Definition, content: Mapping[str, str]) -> dict[str, str]:
    """Hash of each artifact of a study, by kind.

    Args:
        definition: The study's definition.
        content: Hashes that the study was created with.
    """
    key = {"teacher": content["teacher"], "rows": content["rows"]}
    importance = importance_key(definition, content)
    hashes = {
        "tokens": key["rows"],
        "teacher": key["teacher"],
        "logits": digest(logits_key(content)),
        "importance": digest(importance),
        **({"directions": digest(key)} if definition.space.factorises else {}),
    }
    if definition.recovery.cuts_supernet:
        hashes[SUPERNET] = digest(supernet_key(definition, importance))
    if TABLE in content:
        hashes[TABLE] = content[TABLE]
    return hashes


def logits_key(content: Mapping[str, str]) -> dict[str, str]:
    """Everything that determines the teacher's logits on the training split.

    Args:
        content: Hashes that the study was created with, and `LOGITS` where they are not computed as `auto` says.
    """
    return {name: content[name] for name in ("teacher", "rows", LOGITS) if name in content}


def importance_key(definition: Definition, content: Mapping[str, str]) -> dict[str, Any]:
    """Everything that determines a study's importance scores; teacher and rows are in it.

    Args:
        definition: The study's definition.
        content: Hashes that the study was created with.
    """
    content = {name: part for name, part in content.items() if name != TABLE}  # measured later, on these scores
    settings = definition.importance.model_dump(mode="json")
    if "importance" not in content:  # prepared before: the key of then, in which the number of rows hides their hash
        return {**content, "seed": definition.engine.seed, "method": settings["method"], "rows": settings["rows"]}
    return {**content, "seed": definition.engine.seed, "settings": settings}


def supernet_key(definition: Definition, importance: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that determines a study's super-network.

    Args:
        definition: The study's definition.
        importance: Everything that determines the importance scores.
    """
    return {
        "importance": dict(importance),
        "space": definition.space.model_dump(mode="json", exclude={"precision"}),
        "supernet": definition.supernet.model_dump(mode="json"),
        "precision": definition.recovery.precision,
        "seed": definition.engine.seed,
    }
