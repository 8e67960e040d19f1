"""The file of each family of models that lies in an exported folder, so that plain transformers loads it.

They are copied as they are: they import torch and transformers only, and nothing here imports them.
"""
