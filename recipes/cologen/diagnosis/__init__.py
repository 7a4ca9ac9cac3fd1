"""What `doctor` finds out about a run, and how it shows it."""
