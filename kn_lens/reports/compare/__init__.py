"""Comparison of models on their common facts, from the records of their runs.

``runs`` reads the finished runs, ``estimates`` computes each statistic of each run with its bootstrap, and
``comparison`` tests the differences and holds the tables. No model is loaded.
"""
