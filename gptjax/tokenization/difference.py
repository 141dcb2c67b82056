"""In what two tokenizers differ: `explain_difference`."""

from gptjax.core.errors import quote
from gptjax.tokenization.tokenizer import Tokenizer


def explain_difference(ours: Tokenizer, theirs: Tokenizer) -> str:
    """What of two tokenizers with different fingerprints differs, as `they differ in the end of text (none / </s>)`."""
    ends = [quote(name or "none") for name in (ours.end_of_text_name, theirs.end_of_text_name)]
    lacking = sorted(ours.specials.items() ^ theirs.specials.items(), key=lambda item: item[::-1])
    names = ", ".join(dict.fromkeys(quote(name) for name, _ in lacking[:4]))
    own, other = (getattr(each, "vocabulary_hash", None) for each in (ours, theirs))  # of the library's
    differing = {
        "kind": ours.kind != theirs.kind,
        "tokens": ours.tokens != theirs.tokens or (own is not None and own != other),
        "the pattern that cuts text": ours.pattern != theirs.pattern,
        f"special tokens ({names})": bool(lacking),
        f"the end of text ({' / '.join(ends)})": ends[0] != ends[1],
    }
    return f"they differ in {' and '.join(part for part, differs in differing.items() if differs)}"
