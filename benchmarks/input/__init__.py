"""How fast pictures reach the model, by source, workers and caches; and what else a training step spends."""
