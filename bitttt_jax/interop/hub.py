"""Models of the Hugging Face Hub, from the local cache or downloaded.

`huggingface_hub` does it, and reads its own settings: HF_HOME (where the cache is), HF_TOKEN,
HF_HUB_OFFLINE, HF_ENDPOINT.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from bitttt_jax.errors import ConfigError, DataError
from bitttt_jax.interop.weights import INDEX_FILE, SINGLE_FILE

# OWNER/NAME, or OWNER/NAME/FILE.gguf.
_NAME = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}(/[\w./-]+\.gguf)?", re.ASCII)
_NEEDED = ("*.safetensors", "*.json", "*.jinja", "tokenizer*", "vocab*", "merges.txt", "README.md")
# Copies of the weights in other formats, which some repositories have.
_NOT_NEEDED = ("*/*", "consolidated*", "adapter_*")


def is_name(text: str) -> bool:
    """Whether a text can name a model of the Hub: OWNER/NAME or OWNER/NAME/FILE.gguf.

    >>> is_name("HuggingFaceTB/SmolLM2-135M"), is_name("runs/a/b"), is_name("/tmp/model")
    (True, False, False)
    """
    return _NAME.fullmatch(text) is not None and ".." not in text


def find(name: str, revision: str | None = None) -> Path:
    """Finds a model in the local cache, or downloads what of it is needed.

    Where there is a network, the cached copy is brought up to date.

    Args:
      name: OWNER/NAME, or OWNER/NAME/FILE.gguf for one file of a repository.
      revision: a branch, tag or commit; the default branch by default.

    Returns:
      The folder of a model, or its GGUF file.

    Raises:
      ConfigError: the name can't be one, or the repository holds several GGUF files.
      DataError: it isn't in the cache and can't be downloaded.
    """
    if not is_name(name):
        raise ConfigError(f"{name!r} names no model", "the Hub's models are called OWNER/NAME")
    owner, repository, *file = name.split("/", 2)
    model = f"{owner}/{repository}"
    import huggingface_hub

    with _explained(name, revision):
        if file:
            return Path(huggingface_hub.hf_hub_download(model, file[0], revision=revision))
        folder = Path(
            huggingface_hub.snapshot_download(
                model,
                revision=revision,
                allow_patterns=list(_NEEDED),
                ignore_patterns=list(_NOT_NEEDED),
            )
        )
        if any((folder / weights).is_file() for weights in (SINGLE_FILE, INDEX_FILE)):
            return folder
        chosen = _only_gguf(model, revision, folder)
        if chosen is None:
            return folder
        return Path(huggingface_hub.hf_hub_download(model, chosen, revision=revision))


def _only_gguf(model: str, revision: str | None, folder: Path) -> str | None:
    """The GGUF file of a repository, if it has any."""
    import huggingface_hub
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        files = [path.relative_to(folder).as_posix() for path in folder.rglob("*.gguf")]
    else:
        files = huggingface_hub.HfApi().list_repo_files(model, revision=revision)
    ggufs = sorted(file for file in files if file.endswith(".gguf"))
    if len(ggufs) > 1:
        shown = " or ".join(f"{model}/{file}" for file in ggufs[:5])
        raise ConfigError(f"{model} has {len(ggufs)} GGUF files", "which one isn't said", shown)
    return ggufs[0] if ggufs else None


@contextlib.contextmanager
def _explained(name: str, revision: str | None) -> Iterator[None]:
    from huggingface_hub import errors

    what = f"{name} at revision {revision}" if revision else name
    try:
        yield
    except errors.GatedRepoError:
        raise DataError(
            f"{what} is open only to those who have accepted its terms",
            fix="accepting them on its page, and HF_TOKEN with a token of yours",
        ) from None
    except errors.RevisionNotFoundError:
        raise DataError(f"{name} has no revision {revision}") from None
    except errors.RepositoryNotFoundError:
        raise DataError(
            f"the Hub has no model {name}, or none that you may see",
            fix="another spelling, or HF_TOKEN with a token of yours for a private one",
        ) from None
    except errors.LocalEntryNotFoundError:
        raise DataError(
            f"{what} isn't in the local cache, and can't be downloaded",
            "there is no connection to the Hub, or HF_HUB_OFFLINE is set",
            "a folder that has the model, as --model=DIR, or downloading it where there is one",
        ) from None
    except (errors.HTTPError, OSError) as error:  # of whichever HTTP client the library has
        first = (str(error).splitlines() or [""])[0]
        raise DataError(f"{what} can't be downloaded", first) from None
