"""Texts without the credentials that they may hold, before they are shown or written down.

Addresses of stores can carry a name and a password or a key (``s3://KEY:SECRET@bucket``), and messages of other
libraries repeat the addresses that they were given. Paths made of addresses have lost a slash (``https:/me:...@host``),
and inside other addresses they are percent-encoded. Where it cannot be told how far a password goes, too much is hidden
rather than too little.
"""

import re

_SCHEME = r"\b[a-z][a-z0-9+.-]{1,30}(?::|%3a)(?:[/\\]|%2f)+"
_NETWORK = r"\b(?:[a-z]+\+)?(?:https?|s3a?|gs|gcs|abfss?|az|adl|hf|s?ftp|ssh|webdavs?|wss?):(?![/\\])"
"""Schemes that are addresses without a slash too."""
_PAIR = r"[^/\\@:\s]{0,500}?(?::|%3a)\S{0,500}"
"""A name and a password, which may hold any of the characters that end an address."""
_AT = r"(?:@|%40)"
_PATTERNS = (
    (re.compile(rf"({_SCHEME})(?:{_PAIR}|(?:(?!%2f)[^/\\\s]){{0,500}}){_AT}", re.I), r"\1***@"),
    (re.compile(rf"({_NETWORK}){_PAIR}{_AT}", re.I), r"\1***@"),
    (
        re.compile(
            r"((?:[?&;#]|%3f|%26)[\w.-]*(?:token|key|secret|passw|pwd|sig|credential|auth(?!or))[\w.-]*(?:=|%3d))"
            r"(?:(?!%26)[^&\s'\"])+",
            re.I,
        ),
        r"\1***",
    ),
    (re.compile(r"(\bauthorization\W{1,6}(?:(?:bearer|basic|token)\s+)?)[\w.~+/=-]+", re.I), r"\1***"),
    (re.compile(r"\bhf_[A-Za-z0-9]{16,}"), "hf_***"),
)


def without_secrets(text: str) -> str:
    """Return a text with ``***`` in place of credentials in addresses and of Hugging Face tokens.

    >>> without_secrets("s3://KEY:SECRET@bucket/study and https://host/a?sig=abc&b=1")
    's3://***@bucket/study and https://host/a?sig=***&b=1'
    >>> without_secrets("https:/me:pass/w@rd@host/facts.jsonl: no such file.")
    'https:/***@host/facts.jsonl: no such file.'
    """
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text
