"""Commands beside the worker: replay, watch, inspect."""
