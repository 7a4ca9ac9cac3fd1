"""Rooms that know a host library: loaders, callbacks and pictures; each is imported by itself."""
