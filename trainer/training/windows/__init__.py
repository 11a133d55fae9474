"""Training of the window families: batches of whole sessions, autograd, Adam for the rows that a step touches."""
