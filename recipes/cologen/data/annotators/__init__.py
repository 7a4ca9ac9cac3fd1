"""Annotators: what draws the control maps that a data set does not store."""
