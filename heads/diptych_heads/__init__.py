"""The alignment heads that come with diptych, one head one file. ``setup.cfg`` is their catalogue."""
