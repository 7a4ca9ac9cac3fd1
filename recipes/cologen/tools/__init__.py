"""Commands for maintainers: pretraining the tiny base, random weights in real layouts, the cost page."""
