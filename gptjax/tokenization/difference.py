"""In what two tokenizers differ, and whether a model can read what was made with another one than its own."""

from collections.abc import Iterable

from gptjax.core.errors import UserError, quote
from gptjax.process.console import print_once
from gptjax.tokenization.tokenizer import Tokenizer


def check_made_for(own: Tokenizer | None, made_with: Tokenizer | None, *, name: str, advice: str) -> None:
    """Raise `UserError` if ids in the data `name` mean other tokens to a model, as far as both tokenizers are known.

    A note says so if texts in the data may hold the model's role tokens.
    """
    if own is None or made_with is None or own.fingerprint == made_with.fingerprint:
        return
    if not own.extends(made_with):
        raise UserError(
            f"{name} was made with another tokenizer ({made_with.name}) than the run's ({own.name}): "
            f"{explain_difference(made_with, own)}. {advice}."
        )
    if roles := own.list_new_roles(made_with):
        print_once(f"note: {name} {describe_text_roles(roles)}. {advice}.", to_stderr=True)


def describe_text_roles(roles: Iterable[str]) -> str:
    """What is to be known of data that were made while the names of these role tokens were text."""
    return f"was made without the roles {', '.join(map(quote, roles))}: a text in it that spells one holds that token"


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
