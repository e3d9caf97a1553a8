"""Tests that take minutes and packages of their own; `.ci/nightly` runs them."""
