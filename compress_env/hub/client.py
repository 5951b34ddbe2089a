"""The Hub's own client, as a command uses it: names that it takes, its bars, and what it raises in a line with the next step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from compress_env.errors import UserError

LOGIN = "log in with `hf auth login`, or set HF_TOKEN"


def check_name(repo_id: str) -> None:
    """Raises UserError if a text is not `USER/NAME` as the Hub has them."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"{repo_id!r} is no name of a repository ({error}); give USER/NAME") from None
    if "/" not in repo_id:
        raise UserError(f"{repo_id!r} has no user or organisation; give USER/NAME")


@contextmanager
def bars(shown: bool) -> Iterator[None]:
    """Within the block, the client shows its bars or does not."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if shown or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


@contextmanager
def explained(repo_id: str) -> Iterator[None]:
    """What the client raises in the block, as UserError with the next step."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        raise UserError(f"{repo_id} is open only to those whom its owner lets in; ask on its page, then {LOGIN}") from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{repo_id} has no such branch, tag or commit; give another revision, or none") from None
    except errors.RepositoryNotFoundError:
        raise UserError(f"there is no repository {repo_id} that you may see; look at its name, or {LOGIN}") from None
    except errors.HfHubHTTPError as error:
        denied = error.response.status_code in (401, 403)
        step = f"the token has to be one that may write there: {LOGIN}" if denied else "try again later"
        raise UserError(f"the Hub refuses {repo_id} ({_line(error)}); {step}") from error
    except (ConnectionError, errors.LocalEntryNotFoundError) as error:
        raise UserError(f"the Hub cannot be reached ({_line(error)}); look at the network, HF_ENDPOINT and HF_HUB_OFFLINE") from error
    except Exception as error:  # noqa: BLE001 - errors of the HTTP library, which the client has changed before
        if not type(error).__module__.startswith("httpx"):
            raise
        raise UserError(f"the Hub cannot be reached ({_line(error)}); look at the network, HF_ENDPOINT and HF_HUB_OFFLINE") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
