"""The method on one page: φ, RTD's training of the text encoder, the evaluation; every step is a stage.

    captions                     -> CaptionTable                                  -> LincirPhi
    images                       -> ImageEmbeddings                               -> Pic2wordPhi     φ
    images                       -> ImageEmbeddings, SearleConcepts, SearleTokens -> SearlePhi           (or a PhiFile)
    φ, triplets                  -> TripletEmbeddings                             -> Tuning -> TunedClip
    a benchmark's task           -> GalleryEmbeddings
    φ, gallery                   -> TaskEvaluation    rows of the published text encoder
    φ, gallery, TunedClip        -> TaskEvaluation    row "rtd"
    all of them                  -> ComposedRetrieval, the result of a run

All of them stand on one ClipSource. `data` has the stages that are read or drawn again, `fitting` what the trained ones
share; the mathematics is in the folders `phi`, `text`, `tuning`, `retrieval` and `benchmarks` beside this one and knows
no stage. `rtd_jax.experiment.plan` builds the stages from a config.
"""

from rtd_jax.stages.data import (
    CAPTIONS,
    IMAGES,
    TRIPLETS,
    CaptionFile,
    CircoTask,
    CirrTask,
    ClipSource,
    FashioniqTask,
    GenecisTask,
    ImageFolder,
    SceneCaptions,
    SceneImages,
    SceneTask,
    SceneTriplets,
    TripletFile,
)
from rtd_jax.stages.evaluation import ComposedRetrieval, GalleryEmbeddings, TaskEvaluation
from rtd_jax.stages.fitting import Compute, DeviceMesh
from rtd_jax.stages.phi import (
    METHODS,
    CaptionTable,
    ImageEmbeddings,
    LincirPhi,
    PhiFile,
    PhiTraining,
    Pic2wordPhi,
    SearleConcepts,
    SearlePhi,
    SearleTokens,
)
from rtd_jax.stages.tuning import TripletEmbeddings, TunedClip, Tuning

__all__ = [
    "CAPTIONS",
    "IMAGES",
    "METHODS",
    "TRIPLETS",
    "CaptionFile",
    "CaptionTable",
    "CircoTask",
    "CirrTask",
    "ClipSource",
    "ComposedRetrieval",
    "Compute",
    "DeviceMesh",
    "FashioniqTask",
    "GalleryEmbeddings",
    "GenecisTask",
    "ImageEmbeddings",
    "ImageFolder",
    "LincirPhi",
    "PhiFile",
    "PhiTraining",
    "Pic2wordPhi",
    "SceneCaptions",
    "SceneImages",
    "SceneTask",
    "SceneTriplets",
    "SearleConcepts",
    "SearlePhi",
    "SearleTokens",
    "TaskEvaluation",
    "TripletEmbeddings",
    "TripletFile",
    "TunedClip",
    "Tuning",
]
