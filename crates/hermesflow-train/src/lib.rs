//! Pair-DPO loss, trainer, optimizer, schedule, checkpoints.
