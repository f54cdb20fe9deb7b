"""The local page of ``diptych app``: what models say of one picture, and a server for this machine alone."""
