"""From files and logged clicks to sessions and training batches."""
