"""Paths out of requests, confined to the folders that the studio may touch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from bitttt_jax.studio.errors import RequestError

_MAX_NAME = 200


def confine(path: str | Path, roots: Iterable[Path]) -> Path:
    """Resolves a path, and refuses what isn't below one of the roots.

    Args:
      path: absolute, or relative to the studio's folder; needn't exist.
      roots: folders; symbolic links out of them are refused.

    Returns:
      The path without symbolic links.

    Raises:
      RequestError: 403, it is elsewhere; 400, it is no path.
    """
    roots = list(roots)
    try:
        resolved = Path(path).resolve()
        inside = any(resolved.is_relative_to(root.resolve()) for root in roots)
    except (OSError, ValueError, RuntimeError) as error:
        raise RequestError(400, f"{str(path)!r:.200} is no path", str(error)) from None
    if not inside:
        raise RequestError(
            403,
            f"{str(path)!r:.200} is outside of the studio's folders",
            f"they are {', '.join(map(str, roots))}",
            "bitttt studio --data=FOLDER for another folder",
        )
    return resolved


def check_name(name: str) -> str:
    """Refuses names that aren't one plain segment of a path.

    Returns:
      The name.

    Raises:
      RequestError: it is empty, hidden, too long, or has separators or control characters.
    """
    bad = not name or name.startswith(".") or len(name.encode(errors="replace")) > _MAX_NAME
    if bad or any(c in "/\\" or not c.isprintable() for c in name) or name != name.strip():
        raise RequestError(
            400,
            f"{name!r:.200} can't be a name",
            "a name has no slashes or control characters, and begins with no dot or space",
        )
    return name
