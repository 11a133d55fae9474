"""The commands of the `trainer` program, one module each: the shell around the functions that do the work."""
