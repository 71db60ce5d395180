"""Errors with their whole first line."""

from __future__ import annotations

import re
from typing import Any

import pytest


def message(kind: type[Exception], text: str) -> Any:
    """pytest.raises for an error whose message begins with `text`, a regular expression."""
    return pytest.raises(kind, match=f"^{text}")


def raises(kind: type[Exception], text: str) -> Any:
    """pytest.raises for an error whose message begins with these words."""
    return pytest.raises(kind, match=f"^{re.escape(text)}")
