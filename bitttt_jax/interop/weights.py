"""The weights of a Hugging Face folder: one safetensors file, or several with an index."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np

from bitttt_jax.data import safetensors
from bitttt_jax.errors import DataError
from bitttt_jax.interop import fields

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_FLOATS = (np.dtype("float32"), np.dtype("float16"), np.dtype("float64"))


class Weights:
    """Tensors by name, read one by one, each asked for with the shape that it must have.

    Args:
      folder: of a model.

    Raises:
      DataError: it holds no safetensors files, or damaged ones.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._files: dict[str, safetensors.File] = {}
        for path in _paths(folder):
            file = safetensors.File(path)
            if twice := self._files.keys() & file.entries.keys():
                name = min(twice)
                raise DataError(
                    f"the tensor {name!r:.99} is in two files",
                    f"{self._files[name].path} and {path}",
                )
            self._files |= dict.fromkeys(file.entries, file)
        self._unread = set(self._files)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def __len__(self) -> int:
        return len(self._files)

    @property
    def largest_dimension(self) -> int:
        """Of all tensors that aren't empty."""
        shapes = (file.entries[name].shape for name, file in self._files.items())
        return max((max(shape, default=1) for shape in shapes if 0 not in shape), default=0)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor that is there."""
        return self._files[name].entries[name].shape

    def dtype(self, name: str) -> np.dtype:
        """Type of a tensor that is there."""
        return self._files[name].entries[name].dtype

    def holds_bytes(self, name: str) -> bool:
        """Whether a tensor is there and packed."""
        return name in self and self.dtype(name) == np.uint8

    def read(self, name: str, *shape: int) -> np.ndarray:
        """Reads a tensor.

        Raises:
          DataError: it isn't there, has another shape, or can't be read.
        """
        if name not in self._files:
            raise DataError(
                f"{self.folder} lacks the tensor {name}", "its config.json says there is one"
            )
        if self.shape(name) != shape:
            raise DataError(
                f"{self._files[name].path}: {name} has the shape {list(self.shape(name))}",
                f"by config.json it is {list(shape)}",
            )
        self._unread.discard(name)
        return self._files[name].read(name)

    def floats(self, name: str, *shape: int) -> np.ndarray:
        """Reads a tensor of floats, of whichever float type.

        Raises:
          DataError: as `read`, or it has integers.
        """
        if name in self and self.dtype(name) not in _FLOATS and self.dtype(name).name != "bfloat16":
            raise DataError(
                f"{self._files[name].path}: {name} holds {self.dtype(name)}, not floats",
                "weights quantised in another way than BitNet's can't be read",
            )
        return self.read(name, *shape)

    def vector(self, name: str, *shape: int) -> np.ndarray:
        """Reads a small tensor of floats as float32."""
        return self.floats(name, *shape).astype(np.float32)

    def are_equal(self, first: str, second: str) -> bool:
        """Whether two tensors are the same; both count as read."""
        self._unread -= {first, second}
        if (self.shape(first), self.dtype(first)) != (self.shape(second), self.dtype(second)):
            return False
        a, b = (self._files[name].read(name).reshape(-1) for name in (first, second))
        return np.array_equal(a.view(np.uint8), b.view(np.uint8))

    def check_all_read(self, ignored: tuple[str, ...] = ()) -> None:
        """Sees that no tensor is left over: it would be part of a function that isn't computed.

        Args:
          ignored: patterns of names that may be left.

        Raises:
          DataError: one is.
        """
        left = [n for n in self._unread if not any(fnmatch.fnmatchcase(n, p) for p in ignored)]
        if left:
            more = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
            raise DataError(
                f"{self.folder} has the tensor {min(left)!r:.99}{more}",
                "this program doesn't know what the model does with it",
            )


def _paths(folder: Path) -> Iterator[Path]:
    """The safetensors files of a folder."""
    if (folder / SINGLE_FILE).is_file():
        yield folder / SINGLE_FILE
        return
    if not (folder / INDEX_FILE).is_file():
        raise _without_weights(folder)
    index = fields.read_json(folder / INDEX_FILE)
    places = index.object("weight_map")
    if places is None or not places.values:
        raise index.fault("weight_map", "it says which file holds which tensor")
    names = {places.text(tensor) for tensor in places.values}
    for name in sorted(names):
        is_bare = PurePosixPath(name).name == name == PureWindowsPath(name).name
        if not is_bare or not name.endswith(".safetensors"):
            raise DataError(
                f"{index.path} names the file {name!r:.99}",
                "only safetensors files beside it are read",
            )
        if not (folder / name).is_file():
            raise DataError(
                f"{folder / name} isn't there",
                f"{index.path.name} says that it holds weights",
                "downloading the missing file",
            )
        yield folder / name


def _without_weights(folder: Path) -> DataError:
    pickles = sorted(p.name for p in folder.iterdir() if any(map(p.match, _PICKLES)))
    if not pickles:
        return DataError(f"{folder} has neither {SINGLE_FILE} nor {INDEX_FILE}")
    return DataError(
        f"{folder} has its weights in {pickles[0]}, a pickle",
        "loading one can run any code that its author put in, so none is loaded",
        "a safetensors version of the model (save_pretrained of transformers writes it)",
    )
