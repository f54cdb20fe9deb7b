"""Peers: models of other projects, a file each (``diptych.peer``). Names of keys and settings are theirs; no code is."""
