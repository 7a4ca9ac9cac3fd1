"""Recipes: complete programs built on `prw`. The library never imports them."""
