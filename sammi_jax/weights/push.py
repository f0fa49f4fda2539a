"""Uploading a model folder to the Hugging Face Hub."""

from collections.abc import Iterator
from contextlib import contextmanager

from sammi_jax.errors import SammiError
from sammi_jax.object_store import PathLike
from sammi_jax.text.tokenizer import TOKENIZER_FILE
from sammi_jax.weights.hub import cause_of, check_repository, http_status
from sammi_jax.weights.model_card import model_card
from sammi_jax.weights.model_folder import CONFIG_FILE, WEIGHTS_FILE, describe

CARD_FILE = "README.md"


def push(folder: PathLike, repository: str, *, private: bool = False) -> str:
    """Upload a model folder with a model card, as one commit, and return the commit's address.

    The repository is created if need be. A README.md in the folder is uploaded as it is; without
    one the card is made from config.json (`weights.model_card`). Nothing in the folder changes.

    Args:
        folder: a model folder; it is checked first.
        repository: ``ORG/NAME``.
        private: only those who may read the repository see it.

    Raises:
        SammiError: not a model folder; no token, or one that may not write there; the Hub is not
            reachable or rejects the files; or ``private`` was asked for and the repository is
            public.
    """
    found = describe(folder)
    check_repository(repository)

    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    card = found.path / CARD_FILE
    content = card.read_bytes() if card.is_file() else model_card(found, repository).encode()
    names = [CONFIG_FILE, TOKENIZER_FILE, WEIGHTS_FILE]
    files = [path for name in names if (path := found.path / name).is_file()]
    api = HfApi()
    with _hub_errors(repository):
        if get_token() is None:
            raise SammiError(
                f"{repository}: no token of the Hugging Face Hub to upload with; log in with 'hf "
                "auth login', or set HF_TOKEN to a token that may write"
            )
        api.create_repo(repository, private=private or None, exist_ok=True)
        if private and not api.model_info(repository).private:
            raise SammiError(
                f"{repository}: is public; make it private in its settings first, or leave "
                "--private out"
            )
        commit = api.create_commit(
            repository,
            [
                CommitOperationAdd(CARD_FILE, content),
                *(CommitOperationAdd(path.name, path) for path in files),
            ],
            commit_message=f"Upload a {found.kind} model folder of sammi_jax",
        )
    return commit.commit_url


@contextmanager
def _hub_errors(repository: str) -> Iterator[None]:
    """Errors while writing, as one line with the remedy."""
    try:
        yield
    except SammiError:
        raise
    except Exception as error:  # of its own, of its HTTP and storage libraries
        raise SammiError(f"{repository}: {_writing_failed(error)}") from error


def _writing_failed(error: BaseException) -> str:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "cannot be uploaded, because HF_HUB_OFFLINE is set; unset it"
    status = http_status(error)
    if status in (401, 403, 404):
        return (
            f"the token may not write there ({status}); make one that may at "
            f"{constants.ENDPOINT}/settings/tokens, then 'hf auth login' or set HF_TOKEN"
        )
    return f"the upload failed ({cause_of(error)}); nothing was published, try again"
