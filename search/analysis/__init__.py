"""Reads plain records: fronts, indicators, tables. Knows neither Optuna nor torch."""
