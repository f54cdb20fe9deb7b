"""The task keeps to the contract of every task."""

from mine import Mine

from diptych import Loading, TimmImage
from diptych.plugins import DATAMODULES, find
from diptych.testing import check_task


def test_mine_keeps_the_contract() -> None:
    """Training, results, batches and a resume, on phantoms."""
    image = TimmImage("resnet10t", pretrained=False, model_args={"channels": [8, 8, 16, 16], "stem_width": 8})
    loading = Loading(image_size=32, batch_size=4, eval_batch_size=3, workers=0)
    phantoms = find(DATAMODULES, "phantom").load()
    check_task(Mine(image, resamples=50), phantoms(None, train=8, val=4, test=8, size=32, loading=loading))
