"""Words of messages that depend on what they are about: counts, and types with their article."""


def counted(n: int, noun: str) -> str:
    """Return a count with its noun, in the plural unless it is one.

    >>> counted(1, "fact"), counted(2, "fact"), counted(1200, "prompt")
    ('1 fact', '2 facts', '1,200 prompts')
    """
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def with_article(noun: str) -> str:
    """Return a noun, or the name of a class, with its article: that of its first letter where it begins with letters.

    >>> with_article("encoder-decoder"), with_article("masked")
    ('an encoder-decoder', 'a masked')
    >>> with_article("MPNetForMaskedLM"), with_article("GPT2LMHeadModel")
    ('an MPNetForMaskedLM', 'a GPT2LMHeadModel')
    """
    is_spelled = noun[:2].isupper() and len(noun) > 1
    begins_with_vowel = noun[0] in "AEFHILMNORSX" if is_spelled else noun[0].lower() in "aeiou"
    return f"an {noun}" if begins_with_vowel else f"a {noun}"


def type_with_article(value: object) -> str:
    """Return the name of a value's type with its article.

    >>> type_with_article(1), type_with_article({})
    ('an int', 'a dict')
    """
    return with_article(type(value).__name__)
