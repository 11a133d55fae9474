"""How settings are read, and those of `[clicks]`, in which worker and trainer must not differ."""
