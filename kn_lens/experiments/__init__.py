"""The tables and figures of the paper, one file each, and the run directory that their records are kept in.

``stages.py`` lists them in order. Nothing here is imported by the rest of the library, except, late, by the command.
"""
