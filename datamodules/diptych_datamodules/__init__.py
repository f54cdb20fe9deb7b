"""The data sets: one file each, found through the catalogue of entry points ``diptych.datamodules``."""
