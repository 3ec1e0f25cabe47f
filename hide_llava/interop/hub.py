"""An export on the Hugging Face hub, only when it is asked for."""

from __future__ import annotations

from pathlib import Path

from hide_llava.errors import UserError


def check_token(repo: str) -> None:
    """Raises UserError where nothing says who pushes, or the name is none of the hub's; before any work."""
    from huggingface_hub import get_token

    if repo.count("/") != 1 or not all(repo.split("/")):
        raise UserError(f"--push {repo}: expected OWNER/NAME, as the hub names a repository.")
    if get_token() is None:
        raise UserError(f"--push {repo}: no token of the Hugging Face hub is stored here; run `hf auth login`, or set HF_TOKEN.")


def push(folder: Path, repo: str) -> str:
    """Upload a finished export to a repository, which is made private if it is new; returns its address.

    Raises:
        UserError: the hub refused, or does not answer.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repo, private=True, exist_ok=True)
        return str(api.upload_folder(repo_id=repo, folder_path=folder, commit_message=f"Export of {folder.name}"))
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"--push {repo}: the hub did not take it ({type(error).__name__}: {reason}); the export is finished in {folder}."
        ) from None
