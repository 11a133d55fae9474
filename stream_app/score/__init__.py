"""Online scores: how good the rankings were, by the clicks after them; the running scorer."""
