"""The method on one page: data, a network that is trained or was trained before, and its measurements.

    ImageSplits, Architecture           -> Classifier        (or a TrainedRun, a TorchFile)
    Classifier                          -> CleanAccuracy, UpperBound
    Classifier, Explanation             -> RandomPerturbations, UnderAttack, PixelCurves, LocalStability
    all of them                         -> RobustnessResult, the result of a run

The mathematics is in the folders and files beside this one and knows no stage. `robustgrad_jax.experiment.plan` builds
the stages from a config.
"""
