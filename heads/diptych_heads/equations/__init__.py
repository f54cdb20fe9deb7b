"""Equations of single heads, as pure functions."""
