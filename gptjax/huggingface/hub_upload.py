"""Upload of an export to the Hugging Face hub."""

import re
from pathlib import Path
from typing import NoReturn

from gptjax.core.errors import UserError, quote

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def check_upload(repository: str) -> None:
    """Raise `UserError` unless the hub can be reached and knows who asks. Call it before anything is written."""
    from huggingface_hub import HfApi

    if not REPOSITORY.fullmatch(repository):
        raise UserError(f"--push-to={repository} is not the name of a repository; wanted: OWNER/REPO.")
    try:
        HfApi().whoami()
    except Exception as error:  # the hub's errors have no common base class
        _refuse(repository, error, advice="Log in with `hf auth login`, or set HF_TOKEN.")


def upload_directory(directory: Path, repository: str, *, private: bool) -> str:
    """Upload all files as one commit to a model repository, which is made if it does not exist. Returns its address.

    Raises:
        UserError: the hub refuses, or does not answer. The directory stays.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        url = api.create_repo(repository, repo_type="model", private=private, exist_ok=True)
        api.upload_folder(folder_path=directory, repo_id=repository, commit_message="Weights exported by gptjax")
    except Exception as error:
        _refuse(repository, error, advice=f"{directory} is complete: hf upload {repository} {directory} tries again.")
    return str(url)


def _refuse(repository: str, error: Exception, *, advice: str) -> NoReturn:
    reason = quote(str(error).strip().partition("\n")[0].rstrip("."))
    raise UserError(f"--push-to={repository}: the hub failed: {type(error).__name__}: {reason}. {advice}") from error
