"""Caches of latents and text embeddings: what is kept, by which key, and what stands in for the encoders."""
