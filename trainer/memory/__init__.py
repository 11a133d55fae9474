"""The session memory: what is counted beside the network, and how its weights are fitted."""
