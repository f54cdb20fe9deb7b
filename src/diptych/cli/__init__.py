"""The command line.

- ``main``: the ``diptych`` command, which imports no torch. ``run``: ``fit``, ``validate`` and ``test``.
- ``help`` and ``messages``: what these three print.
- ``compare``, ``export`` and ``prepare``: a command each.
"""
