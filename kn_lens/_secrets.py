"""Texts without the credentials that they may hold, before they are shown or written down.

Addresses of stores can carry a name and a password or a key (``s3://KEY:SECRET@bucket``), and messages of other
libraries repeat the addresses that they were given.
"""

import re

_PATTERNS = (
    (re.compile(r"(?<=://)[^/@\s'\"]+@"), "***@"),
    (
        re.compile(r"([?&][\w-]*(?:token|key|secret|password|sig|signature|credential)[\w-]*=)[^&\s'\"]+", re.I),
        r"\1***",
    ),
    (re.compile(r"\bhf_[A-Za-z0-9]{16,}"), "hf_***"),
)


def without_secrets(text: str) -> str:
    """Return a text with ``***`` in place of credentials in addresses and of Hugging Face tokens.

    >>> without_secrets("s3://KEY:SECRET@bucket/study and https://host/a?sig=abc&b=1")
    's3://***@bucket/study and https://host/a?sig=***&b=1'
    """
    for pattern, shown in _PATTERNS:
        text = pattern.sub(shown, text)
    return text
