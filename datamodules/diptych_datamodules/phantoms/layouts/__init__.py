"""Phantoms in the layouts of public releases."""
