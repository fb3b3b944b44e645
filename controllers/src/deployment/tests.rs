//! Rollouts against random pods: the bounds hold at every step, and every rollout ends.
