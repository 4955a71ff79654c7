"""The public names of `regnet`; this module is imported when the first of them is used."""

from regnet import errors
from regnet.data.preprocess import Preprocess
from regnet.design.complexity import Complexity, complexity
from regnet.design.config import (
    AnyNetConfig,
    RegNetConfig,
    StageConfig,
    config_from_dict,
    config_from_json,
)
from regnet.design.scaling import Scaled, scale
from regnet.engines.optimize import Optimized, optimize
from regnet.evaluation.evaluate import Evaluation, evaluate
from regnet.exporting import Exported, export
from regnet.nn.features import FeatureNet
from regnet.nn.model import AnyNet, RegNet
from regnet.prediction.collection import Collected, predict_collection
from regnet.prediction.images import ClassScore, Prediction, predict
from regnet.selection.choose import Choice, Chosen, choose
from regnet.selection.device import learn_latency
from regnet.selection.limits import Limits
from regnet.selection.search import search
from regnet.training.loop import Trained, resume, train
from regnet.training.recipe import Recipe, find_recipe
from regnet.training.session import Options as TrainOptions
from regnet.zoo import factories
from regnet.zoo.create import create, preprocess
from regnet.zoo.factories import *  # noqa: F403 - one function per variant
from regnet.zoo.listing import (
    ModelInfo,
    get_pretrained_cfg,
    info,
    is_model,
    list_models,
    list_pretrained,
)

__all__ = [
    "AnyNet",
    "AnyNetConfig",
    "Choice",
    "Chosen",
    "ClassScore",
    "Collected",
    "Complexity",
    "Evaluation",
    "Exported",
    "FeatureNet",
    "Limits",
    "ModelInfo",
    "Optimized",
    "Prediction",
    "Preprocess",
    "Recipe",
    "RegNet",
    "RegNetConfig",
    "Scaled",
    "StageConfig",
    "TrainOptions",
    "Trained",
    "choose",
    "complexity",
    "config_from_dict",
    "config_from_json",
    "create",
    "errors",
    "evaluate",
    "export",
    "find_recipe",
    "get_pretrained_cfg",
    "info",
    "is_model",
    "learn_latency",
    "list_models",
    "list_pretrained",
    "optimize",
    "predict",
    "predict_collection",
    "preprocess",
    "resume",
    "scale",
    "search",
    "train",
]
__all__ += factories.__all__
