"""diptych: vision-language contrastive pre-training on chest radiographs and their reports.

One image tower and one text tower are joined by an interchangeable alignment head. Importing the package does not import
torch. A name is imported from its module when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from diptych.lazy import face
from diptych.version import __version__ as __version__

if TYPE_CHECKING:
    from diptych.data.datamodule import RadiographDataModule as RadiographDataModule
    from diptych.data.dataset import RadiographDataset as RadiographDataset
    from diptych.data.dataset import Sample as Sample
    from diptych.data.loading import Loading as Loading
    from diptych.data.splits import Fractions as Fractions
    from diptych.data.tables import Columns as Columns
    from diptych.errors import ConfigError as ConfigError
    from diptych.errors import DataError as DataError
    from diptych.errors import DiptychError as DiptychError
    from diptych.evaluation.base import Evaluator as Evaluator
    from diptych.evaluation.class_retrieval import ClassRetrieval as ClassRetrieval
    from diptych.evaluation.grounding import Grounding as Grounding
    from diptych.evaluation.multi_resolution import MultiResolution as MultiResolution
    from diptych.evaluation.prompts import PromptSet as PromptSet
    from diptych.evaluation.prompts import load_prompts as load_prompts
    from diptych.evaluation.retrieval import Retrieval as Retrieval
    from diptych.evaluation.retrieved_reports import RetrievedReports as RetrievedReports
    from diptych.evaluation.zero_shot import ZeroShot as ZeroShot
    from diptych.head import AlignmentHead as AlignmentHead
    from diptych.head import gather_pairs as gather_pairs
    from diptych.head import tell_step as tell_step
    from diptych.metrics.bootstrap import Metric as Metric
    from diptych.model.encoder import DualEncoder as DualEncoder
    from diptych.model.inference import TrainedModel as TrainedModel
    from diptych.model.inference import load as load
    from diptych.model.module import AlignmentModule as AlignmentModule
    from diptych.model.pretrained import from_pretrained as from_pretrained
    from diptych.model.pretrained import push_to_hub as push_to_hub
    from diptych.model.pretrained import save_pretrained as save_pretrained
    from diptych.nn.norm import GlobalBatchNorm as GlobalBatchNorm
    from diptych.reports.chexbert import Chexbert as Chexbert
    from diptych.reports.labeller import Labeller as Labeller
    from diptych.reports.labeller import Rules as Rules
    from diptych.reports.tokenizer import Tokenizer as Tokenizer
    from diptych.tasks.attentive_probe import AttentiveProbe as AttentiveProbe
    from diptych.tasks.base import PyramidTask as PyramidTask
    from diptych.tasks.base import Task as Task
    from diptych.tasks.base import TrainedTask as TrainedTask
    from diptych.tasks.detect import Detect as Detect
    from diptych.tasks.few_shot import FewShot as FewShot
    from diptych.tasks.finetune import FineTune as FineTune
    from diptych.tasks.generate import Generate as Generate
    from diptych.tasks.multiple_instance import MultipleInstance as MultipleInstance
    from diptych.tasks.probe import Probe as Probe
    from diptych.tasks.segment import Segment as Segment
    from diptych.tasks.trained_image import TrainedImage as TrainedImage
    from diptych.towers.base import Tower as Tower
    from diptych.towers.fused import FusedImage as FusedImage
    from diptych.towers.image import ImageTower as ImageTower
    from diptych.towers.image import TimmImage as TimmImage
    from diptych.towers.lora import LoraImage as LoraImage
    from diptych.towers.lora import LoraText as LoraText
    from diptych.towers.open_clip import OpenClipImage as OpenClipImage
    from diptych.towers.open_clip import OpenClipText as OpenClipText
    from diptych.towers.text import ScratchText as ScratchText
    from diptych.towers.text import TextTower as TextTower
    from diptych.towers.text import TransformersText as TransformersText
    from diptych.towers.transformers_image import TransformersImage as TransformersImage
    from diptych.training.figures import Figures as Figures
    from diptych.types import Batch as Batch
    from diptych.types import Dims as Dims
    from diptych.types import Embedding as Embedding
    from diptych.types import Features as Features
    from diptych.types import Pairs as Pairs
    from diptych.types import TextBatch as TextBatch
    from diptych.types import TokenEmbedding as TokenEmbedding

__getattr__, __dir__ = face(__name__)
