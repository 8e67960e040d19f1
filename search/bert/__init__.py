"""The model's room: data, the dense teacher, importance, surgery and recovery. Knows torch, not Optuna."""
