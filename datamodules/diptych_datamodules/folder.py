"""A folder of pictures, without a table: what ``diptych predict`` reads where there is nothing but files."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from diptych.data.columns import Strings
from diptych.data.datamodule import RadiographDataModule, RadiographDataset, Sample, Split
from diptych.data.loading import Loading
from diptych.errors import ConfigError, DataError
from diptych.radiographs.packed import PackedImage, Store, open_images, read_image
from diptych.reports.tokenizer import Tokenizer

__all__ = ["PictureFolder"]


class _Pictures(RadiographDataset):
    """The pictures below a folder, by their relative paths, which are their ids."""

    def __init__(self, root: Path, names: list[str], store: Store | None, places: list[int]) -> None:
        self.root, self.store, self.places = root, store, np.array(places, np.int64)
        self.ids = self.patients = Strings(names)

    def read(self, index: int, rng: np.random.Generator) -> Sample:
        where: Path | PackedImage = self.root / self.ids[index]
        if self.store is not None:
            where = PackedImage(self.store, int(self.places[index]))
        pixels, _, notes, _ = read_image(where, self.intensity)
        return Sample(pixels, notes=notes)

    def texts(self) -> Iterable[str]:
        return ()


class PictureFolder(RadiographDataModule):
    """Every picture below a folder, at any depth. Its id is its path from there.

    A file is a picture by its ending (DICOM, PNG, JPEG, TIFF, WebP, BMP), or by its content where the ending does not tell.
    Other files are counted and told. All pictures are in the split ``test``, since nothing is trained on them. A picture
    counts as a patient of its own.

    Args:
        folder: the folder, or one that ``diptych prepare folder`` has packed.
        tokenizer: not used. There are no reports.
        loading: how pictures are loaded.
    """

    paper: ClassVar[str] = "your own pictures"
    needs: ClassVar[frozenset[str]] = frozenset({"pictures below a folder"})
    holds: ClassVar[frozenset[str]] = frozenset({"image"})

    def __init__(
        self,
        folder: str,
        tokenizer: Tokenizer | None = None,
        *,
        loading: Loading = Loading(),  # noqa: B008  # frozen
    ) -> None:
        super().__init__(tokenizer, loading)
        self.folder = folder

    @property
    def protocol(self) -> str:
        """The folder's name."""
        return f"folder {Path(os.path.abspath(self.folder)).name}"

    def build(self) -> dict[Split, RadiographDataset]:
        """List the pictures, in the order of their paths.

        Raises:
            ConfigError: there is no such folder.
            DataError: no picture lies below it.
        """
        root = Path(self.folder)
        if not root.is_dir():
            raise ConfigError(f"folder is '{self.folder}', and there is no such folder; give one with pictures")
        files = open_images(root, self.loading.image_size, self.loading.intensity)
        store = files if isinstance(files, Store) else None
        found: list[tuple[str, int]] = []
        for _, image in files.below(root):
            name = os.path.relpath(str(image), root)
            if isinstance(image, PackedImage) and image.unusable:
                self.dropped.add(image.unusable[0], name, image.unusable[1])
            else:
                found.append((name, image.at if isinstance(image, PackedImage) else 0))
        found.sort()
        if not found and not self.dropped.rows:
            raise DataError(
                f"{root}: no picture (DICOM, PNG, JPEG, TIFF, WebP, BMP) lies below it; give another folder"
            )
        if store is None and (others := sum(len(names) for _, _, names in os.walk(root)) - len(found)):
            rank_zero_info(f"{root}: {others} files are no pictures by their endings or contents, and are not read")
        return {"test": _Pictures(root, [name for name, _ in found], store, [at for _, at in found])}
