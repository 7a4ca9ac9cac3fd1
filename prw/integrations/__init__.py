"""Modules that know a host library: loaders, callbacks and plots; each is imported by itself."""
