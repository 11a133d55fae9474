"""Settings of both programs: where they are read from, and those that both must share."""
