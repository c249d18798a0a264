"""Removal of credentials from texts before they are shown or saved.

A storage URL can contain a user name with a password or a key (``s3://KEY:SECRET@bucket``), and other libraries quote
such URLs in their messages. A URL that was turned into a path has lost a slash (``https:/me:...@host``); a URL inside
another URL is percent-encoded. Where the end of a password is ambiguous, the longer match is hidden.
"""

import re

_SCHEME = r"\b[a-z][a-z0-9+.-]{1,30}(?::|%3a)(?:[/\\]|%2f)+"
_NETWORK = r"\b(?:[a-z]+\+)?(?:https?|s3a?|gs|gcs|abfss?|az|adl|hf|s?ftp|ssh|webdavs?|wss?):(?![/\\])"
"""Schemes that form a URL without a slash as well."""
_PAIR = r"[^/\\@:\s]{0,500}?(?::|%3a)\S{0,500}"
"""A user name and a password, which may contain any character that ends a URL."""
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
    """Return a text with ``***`` in place of credentials in URLs and authorization headers, and of Hugging Face tokens.

    >>> without_secrets("s3://KEY:SECRET@bucket/study and https://host/a?sig=abc&b=1")
    's3://***@bucket/study and https://host/a?sig=***&b=1'
    >>> without_secrets("https:/me:pass/w@rd@host/facts.jsonl: no such file.")
    'https:/***@host/facts.jsonl: no such file.'
    """
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text
