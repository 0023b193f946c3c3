"""The stages of a run: what is made from what.

    ImageSplit ──── Erm ──── Features ──┬─ ImageMoments ── LinearProjector ──┬─ KeptWords ── Heads ── Comparison
        └────────── ClipImages ─────────┘                     │              │
    FrozenClip ───────┴──── Gap ──────────────────────────────┘              │
        └────────── EmbeddedWords ───────────────────────────────────────────┘

`images` has data, classifier and the two views of every image, `text` and `heads` the method (gap, projector, words;
heads), `comparison` the baselines and the numbers of all.
"""
