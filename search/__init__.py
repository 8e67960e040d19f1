"""Decides which pruned BERTs to try, makes them, records them and reads them back.

A study script writes a `Definition` and calls `run`; everything else is behind the `paretobert` command.
"""
