"""Commands beside the worker: replay, watch, inspect, explain, replay-session, forget, rejected."""
