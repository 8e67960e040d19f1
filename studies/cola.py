"""BERT-base on CoLA: is a sentence acceptable English? Scored by Matthews correlation.

From the hub, or from local folders:

    python studies/cola.py
    python studies/cola.py --model PATH/TO/CHECKPOINT --data PATH/TO/CoLA

The folder holds GLUE's files train.tsv and dev.tsv: four columns without a header, read without quoting. The selection
split is carved out of train; GLUE's dev set is held out.
"""

from search import Definition, EngineSettings, RecoverySettings, Task, TeacherSettings, run

study = Definition(
    name="cola",
    model="bert-base-uncased",
    data="nyu-mll/glue",
    task=Task(
        config="cola",
        text=("sentence",),
        label="label",
        labels=("0", "1"),
        columns=("source", "label", "mark", "sentence"),
        quoting=False,
        selection_rows=1000,
        held_out="validation",
        max_tokens=64,
        metric="matthews",
    ),
    teacher=TeacherSettings(epochs=4, learning_rate=2e-5),
    recovery=RecoverySettings(steps=400, learning_rate=5e-5),
    engine=EngineSettings(trials=200),
)

if __name__ == "__main__":
    run(study)
