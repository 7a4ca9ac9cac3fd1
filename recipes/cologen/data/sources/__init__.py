"""Kinds of source: rows with an index, from tables, tar shards, JSON lists and folders."""
