"""RTD on Scenes with the small CLIP: LinCIR's φ from captions, the text encoder from triplets, composed retrieval.

    python -m launch.train --config=configs/rtd/scenes.py --workdir=runs/rtd_scenes

Nothing to download; under two minutes on a core. Over three seeds recall@1 is 79 ± 6 with RTD, 45 ± 5 with φ alone
and 29 ± 1 with the sum of image and text; 57, 36 and 17 in phrasings that RTD has not seen. The table of
`python -m launch.report runs/rtd_scenes --tables` has a row for images alone, texts alone, their sum, φ, φ with RTD's
text encoder, and the targets' captions. artifacts/retrieved-scenes.png shows what some queries find.
φ from images instead: `--config.phi.method=pic2word` or `searle`. Not as published: batches of texts of similar length,
which grouping.py sets beside shuffled ones, and nouns and adjectives alone as LinCIR's keywords.
"""

from configs.rtd import base


def get_config():
    config = base.get_config()
    config.model.unroll = True
    config.captions.source = "scenes"
    config.captions.keywords = "nouns_adjectives"
    config.images.source = "scenes"
    config.triplets.source = "scenes"

    config.phi.batch_size = 128
    config.phi.batches = "by_length"
    config.phi.duration = "1500 steps"
    config.phi.unit_inputs = True
    config.phi.phrases = ("a photo of {} on the grass", "a red {}", "a small {} with the sea behind it", "here is {}")
    config.phi.optimizer.learning_rate = 1e-3
    config.phi.optimizer.schedule.name = "cosine"
    config.phi.optimizer.schedule.warmup = "50 steps"
    config.phi.loop.eval_every = "500 steps"

    config.rtd.batch_size = 64
    config.rtd.batches = "by_length"
    config.rtd.duration = "400 steps"
    config.rtd.optimizer.learning_rate = 3e-4
    config.rtd.optimizer.schedule.name = "cosine"
    config.rtd.optimizer.schedule.warmup = "30 steps"
    return config
