"""A model as files: manifest, vocabulary, graphs and golden pair; writing, verifying, fetching and running it."""
