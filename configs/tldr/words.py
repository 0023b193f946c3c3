"""Word lists from a language model behind an OpenAI-compatible endpoint, for the classes and values of a known set.

    pip install -e '.[llm]'
    export OPENAI_API_KEY=...
    python -m launch.train --config=configs/tldr/words.py --workdir=runs/words --config.outline=waterbirds \\
        --config.llm.base_url=URL --config.llm.model=NAME

Four to eight requests per list. Afterwards `--config.words.source=runs/words/words.json` trains on them. The outline
may be your own JSON file with lists that have descriptions and no words (see `tldr_jax.words`). Every reply is kept in
runs/words/store/replies.jsonl: after a failure the same command continues from there, and with such a file as
`--config.log` and no base_url the lists are made again without the endpoint.
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.experiment = "tldr_jax.generation"
    config.outline = "waterbirds"  # names, anchors, pairs and descriptions of the lists; its words are not read
    config.count = 200  # words of each list
    config.batch = 50  # words to ask for at a time
    config.rounds = 0  # requests per list at most; 0: twice as many as it takes without repetitions
    config.drop_contested = False  # words of two classes or of two values: True for lists that need no CLIP filter
    config.workers = 8  # lists at a time
    config.log = ""  # of replies; "": in the store

    config.llm = llm = ConfigDict()
    llm.model = ""
    llm.base_url = ""  # "": no endpoint, all answers must be in the log
    llm.key_variable = "OPENAI_API_KEY"  # the environment variable with the key; "": the endpoint asks for none
    llm.temperature = 1.0  # -1.0: the endpoint's own
    llm.max_tokens = 0  # 0: the endpoint's own limit
    llm.timeout = 120.0  # seconds
    llm.retries = 5
    llm.attempts = 3
    llm.extra = ConfigDict()  # further fields of requests
    return config
