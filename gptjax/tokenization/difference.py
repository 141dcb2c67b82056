"""In what two tokenizers differ: `explain_difference`."""

from gptjax.core.errors import quote
from gptjax.tokenization.tokenizer import Tokenizer


def explain_difference(ours: Tokenizer, theirs: Tokenizer) -> str:
    """What of two tokenizers with different fingerprints differs, as `they differ in the end of text (none / </s>)`."""
    ends = [quote(name or "none") for name in (ours.end_of_text_name, theirs.end_of_text_name)]
    lacking = sorted(ours.specials.items() ^ theirs.specials.items(), key=lambda item: item[::-1])
    names = ", ".join(dict.fromkeys(quote(name) for name, _ in lacking[:4]))
    known = dict(lacking)
    added = sorted(
        name
        for name in ours.added_tokens.keys() | theirs.added_tokens.keys()
        if name not in known and ours.added_tokens.get(name) != theirs.added_tokens.get(name)
    )
    are_same_kind = ours.kind == theirs.kind  # others have no parts in common
    rules = {name: are_same_kind and rule != theirs.rules.get(name) for name, rule in ours.rules.items()}
    differing = {
        "kind": not are_same_kind,
        "tokens": ours.tokens != theirs.tokens,
        **rules,
        f"added tokens ({', '.join(map(quote, added[:4]))})": are_same_kind and bool(added),
        "the pattern that cuts text": ours.pattern != theirs.pattern,
        f"special tokens ({names})": bool(lacking),
        f"the end of text ({' / '.join(ends)})": ends[0] != ends[1],
    }
    return f"they differ in {' and '.join(part for part, differs in differing.items() if differs)}"
