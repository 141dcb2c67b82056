"""What several commands ask of their options, said in the same words."""

from gptjax.errors import UserError


def at_least(least: int, **options: int | None) -> None:
    """Raise `UserError` where an option is smaller; one that is None is not given."""
    for name, value in options.items():
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')}={value}: wanted at least {least}.")


def one_validation(*, split: str | None, validation_source: str | None) -> None:
    """Raise `UserError` where validation would be both cut from a source and a source of its own."""
    if split is not None and validation_source is not None:
        raise UserError("--split and --validation-source are both given: choose one.")
