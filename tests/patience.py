"""How long a test waits for what has to come.

It measures nothing by that: it ends what would wait for ever, on whatever machine and beside whatever else runs there.
"""

from typing import Final

PATIENCE: Final = 600.0
"""Seconds."""
