"""Fine-tune a published CLIP on image-caption pairs, on one device or many.

    python -m launch.train --config=configs/clip/finetune.py --workdir=runs/finetune --config.data.path=pairs.jsonl

`pairs.jsonl` holds one {"image": FILE, "caption": TEXT} per line; .csv and .tsv with a header row work too; FILE is
relative to its folder or to `--config.data.images=FOLDER`. The result is runs/finetune/clip, which clip_jax and
transformers load.

One GPU: `--config.batch_size=128`, and `--config.model.remat=yes` if memory is short.
Eight GPUs of one machine: the same command, `--config.batch_size=1024`: the batch is split over them, the negatives are
those of the whole. `--config.sharding.model=2` splits the towers over pairs of devices where one cannot hold them.
A TPU pod: the same command on every host with `--distributed`, --workdir on a file system that all of them see. On a
SLURM cluster `srun` with one task per node finds the others by itself.

Another checkpoint: `--config.init_from=FOLDER`, or a hub name. Only the text tower:
`--config.trainable="('text/.*', 'logit_scale')"`.
"""

from configs.clip import base


def get_config():
    config = base.get_config()
    config.init_from = "openai/clip-vit-base-patch32"
    config.batch_size = 256
    config.duration = "5 epochs"
    config.data.name = "captions"
    config.data.val_examples = 500
    config.data.test_examples = 500
    config.model.dtype = "bfloat16"
    config.optimizer.learning_rate = 1e-5
    config.optimizer.schedule.warmup = "0.2 epochs"
    config.loop.eval_every = "0.5 epochs"
    config.loop.checkpoint_every = "0.5 epochs"
    config.evaluation.batch_size = 128
    return config
