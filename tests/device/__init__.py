"""Tests on a pretended CUDA device; README.md says how."""
