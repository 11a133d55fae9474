"""What a rank graph may be told of single items when it ranks: the names and numbers that exporter and worker share."""

from typing import Final

ADJUST: Final = "adjust"
"""The rank graph's input f32[N]: added to every item's score, after all else."""
ADJUSTS: Final = "adjusts"
"""The graph's constant, one bool: whether it looks at that input. False in every file."""
ITEM_ROWS: Final = "output"
"""The rank graph's constant f32[N, D] with a row for each item, for MMR; graphs that count have none."""
EXCLUDED: Final = -3e38
"""What `adjust` has for an item that may not be shown: below every score, and still a number."""
