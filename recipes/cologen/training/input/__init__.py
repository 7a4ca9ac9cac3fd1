"""What training reads: batches, replay of earlier tasks, checks of the data before the first step."""
