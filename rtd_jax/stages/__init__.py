"""The method on one page: φ, RTD's training of the text encoder, the evaluation; every step is a stage.

    captions                     -> CaptionTable                                  -> LincirPhi
    images                       -> ImageEmbeddings                               -> Pic2wordPhi     φ
    images                       -> ImageEmbeddings, SearleConcepts, SearleTokens -> SearlePhi           (or a PhiFile)
    φ, triplets                  -> TripletEmbeddings                             -> Tuning -> TunedClip
    a benchmark's task           -> GalleryEmbeddings
    φ, gallery                   -> TaskEvaluation    rows of the published text encoder
    φ, gallery, TunedClip        -> TaskEvaluation    row "rtd"
    all of them                  -> ComposedRetrieval, the result of a run

All of them stand on one ClipSource. `data` has what is read or drawn again, `fitting` what trained stages share, `phi`,
`tuning` and `evaluation` the rest. The mathematics is in the folders beside this one and knows no stage;
`rtd_jax.experiment.plan` builds the stages from a config.
"""
