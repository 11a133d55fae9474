"""The running worker: from a fetched chunk to its acknowledgement, model swaps, health and metrics."""
