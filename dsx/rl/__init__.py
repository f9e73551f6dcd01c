"""Reinforcement learning: rewards, rollouts, GRPO and the stages of R1."""
