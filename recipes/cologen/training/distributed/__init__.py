"""Several processes train together: DDP, ZeRO-2, FSDP2."""
