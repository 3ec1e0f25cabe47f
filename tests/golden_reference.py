"""Where the recordings of the public implementation lie (tests/golden/README.md)."""

from pathlib import Path

GOLDEN = Path(__file__).parent / "golden"
