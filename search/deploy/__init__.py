"""From a trial of a study to a model that is shipped. Knows torch, transformers and ONNX; knows no Optuna."""
