"""The engine's room: the only importer of Optuna. Knows plans and values, not how a model is cut."""
