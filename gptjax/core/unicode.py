"""Texts that UTF-8 cannot hold."""


def replace_surrogates(text: str) -> str:
    """Text that UTF-8 can hold: pairs of surrogates become their character, single ones U+FFFD."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
