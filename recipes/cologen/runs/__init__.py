"""A run's folder: read, locked, written and loaded from; knows neither how to train nor how to report."""
