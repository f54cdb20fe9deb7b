"""From images to files: what ``diptych predict`` computes, in parts that survive any interruption.

- ``reading``: batches of a data set, where an image that cannot be used is told, not raised.
- ``values``: what is computed of each image. ``parts``: the pieces of the work, and the one that goes on.
- ``writers``: the pieces as one file, csv, npy or parquet.
"""
