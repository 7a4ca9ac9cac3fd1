"""Training: one step, one stage, one run; what is written on the way and how a run goes on."""
