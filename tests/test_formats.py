from __future__ import annotations

from tests import formats


def test_the_readme_says_what_every_format_holds():
    assert formats.table() == formats.in_readme(), "python -m tests.formats writes it"
