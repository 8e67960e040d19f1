"""BERT-base on SST-2: movie-review sentences, positive or negative.

From the hub, or from local folders:

    python studies/sst2.py
    python studies/sst2.py --model PATH/TO/CHECKPOINT --data PATH/TO/SST-2

The folder holds GLUE's files train.tsv and dev.tsv. The training rows are phrases of about 6,900 sentences; the
selection split is carved out by sentence, so that no phrase of a scored sentence was trained on. GLUE's dev set is held
out.
"""

from search import Definition, EngineSettings, RecoverySettings, Task, TeacherSettings, run

study = Definition(
    name="sst2",
    model="bert-base-uncased",
    data="nyu-mll/glue",
    task=Task(
        config="sst2",
        text=("sentence",),
        label="label",
        labels=("0", "1"),
        phrases=True,
        selection_rows=1000,
        held_out="validation",
        max_tokens=64,
    ),
    teacher=TeacherSettings(epochs=2, learning_rate=2e-5),
    recovery=RecoverySettings(steps=400, learning_rate=5e-5),
    engine=EngineSettings(trials=200),
)

if __name__ == "__main__":
    run(study)
