"""What the entry points share: optimisers, EMA, checkpoints, logging, distributed calls, signals."""
