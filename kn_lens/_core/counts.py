"""Counts in messages."""


def counted(n: int, noun: str) -> str:
    """Return a count with its noun, in the plural unless it is one.

    >>> counted(1, "fact"), counted(2, "fact"), counted(1200, "prompt")
    ('1 fact', '2 facts', '1,200 prompts')
    """
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"
