"""Annotators: what makes the control maps that a data set does not store."""
