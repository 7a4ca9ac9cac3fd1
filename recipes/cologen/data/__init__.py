"""Records, the five views that turn them into examples, the embedded world with its oracle, and folders."""
