"""Why something is not got from the Hugging Face hub, and what to do about it, in one line."""

from __future__ import annotations

from collections.abc import Iterator

from huggingface_hub import constants, is_offline_mode
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

LOGIN = "log in (hf auth login, or HF_TOKEN)"


def hub_reason(name: str, error: BaseException) -> str:
    """What to say of an error that Transformers, timm or ``datasets`` raised while it looked for ``name`` on the hub.

    Args:
        name: the repository.
        error: what was raised; what caused it tells more than its own words.

    Returns:
        The reason and the remedy; of any other error its own words, in one line.

    Example:
        >>> hub_reason("me/mine", OSError("its file   is damaged"))
        'its file is damaged'
    """
    kinds = list(_causes(error))
    if any(isinstance(each, GatedRepoError) for each in kinds):
        return f"it is gated: ask for access at {constants.ENDPOINT}/{name}, then {LOGIN}"
    if any(isinstance(each, RepositoryNotFoundError) for each in kinds):
        return f"there is no such folder, and none on the hub by this name, or it is private: {LOGIN}"
    if is_unanswered(error):
        if is_offline_mode():
            why = "HF_HUB_OFFLINE is set, so that the hub is not asked: unset it"
        else:
            why = f"{constants.ENDPOINT} cannot be reached: look at the network and HF_ENDPOINT"
        return f"there is no such folder, it is not in the hub's cache ({constants.HF_HUB_CACHE}), and {why}"
    return " ".join(str(error).split())


def is_unanswered(error: BaseException) -> bool:
    """Whether an error is that the hub was not, or could not be, asked."""
    return any(isinstance(each, (LocalEntryNotFoundError, ConnectionError)) for each in _causes(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
