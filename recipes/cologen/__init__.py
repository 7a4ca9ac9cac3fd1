"""CoLoGen (arXiv 2602.22150) on FLUX: five stages of routed K/V experts, from data to report."""
