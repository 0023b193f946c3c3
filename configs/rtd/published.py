r"""RTD as published, on a real CLIP and the four benchmarks; every file named on the command line.

    python -m launch.train --config=configs/rtd/published.py --workdir=runs/rtd_l14 \
        --config.clip=checkpoints/clip-vit-large-patch14 --config.phi.load=lincir_large.pt \
        --config.triplets.path=triplets.jsonl --config.evaluation.benchmarks="('cirr','circo','fashioniq')" \
        --config.evaluation.roots.cirr=data/cirr --config.evaluation.roots.circo=data/circo \
        --config.evaluation.roots.fashioniq=data/fashioniq --store=store

`--store` keeps embeddings, φ and trained encoders for all runs that name it.
Four GPUs give the published negatives: 512 triplets, each device's 128 by themselves. On one, add
`--config.rtd.objective.accumulation=4`. φ trained here instead of loaded: leave `phi.load` out and give
`--config.captions.path=captions.jsonl`; batch size, length and learning rate are LinCIR's (512, 20,000 steps, 1e-4).
Where CIRR's folder is given, recall@1 on its val split chooses the best states, RTD's of every 100 steps, φ's of every
1,000.
SEARLE's φ from a file: add `--config.phi.method=searle`, and images are padded as SEARLE pads them.
Triplets from captions: `python -m rtd_jax.text.generation --captions captions.jsonl --clip CLIP --out triplets.jsonl`.
GeneCIS: `--config.evaluation.roots.genecis=TEMPLATES --config.evaluation.genecis_images.visual_genome=VG_100K_all
--config.evaluation.genecis_images.coco=val2017`; the tasks of COCO's images alone:
`--config.evaluation.genecis_tasks="('focus_object','change_object')"`.
Where images cannot be fetched any more, as many of FashionIQ's, `--config.evaluation.skip_missing=True` leaves them
out, and the queries that need them; the tables say how many.
The test servers' files: `--config.evaluation.splits.cirr=test1 --config.evaluation.splits.circo=test`; they are written
to artifacts/submissions.
OpenCLIP's bigG/14, whose text tower and its optimiser do not fit one device: `--config.sharding.model=4`.
Expect, by LinCIR's authors for its φ alone with ViT-L/14: CIRR recall@1/5/10 25.04/53.25/66.68, CIRCO
mAP@5/10/25/50 12.59/13.58/15.00/15.85, FashionIQ recall@10/50 26.28/46.49. Not yet run on this data.
"""

from configs.rtd import base


def get_config():
    config = base.get_config()
    config.clip = "openai/clip-vit-large-patch14"
    config.model.dtype = "bfloat16"
    config.evaluation.benchmarks = ("cirr", "circo", "fashioniq")
    return config
