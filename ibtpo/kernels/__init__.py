"""Attention kernels. They know arrays, not models."""
