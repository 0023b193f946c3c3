"""Text triplets from captions: by exchanging keywords, or by a language model.

    python -m rtd_jax.text.generation --captions captions.jsonl --clip checkpoints/clip-vit-b32 --out triplets.jsonl
    python -m rtd_jax.text.generation --captions captions.txt --llm MODEL --base_url URL --out triplets.jsonl

The first way takes a word of a caption, another of the same kind that the text encoder finds similar, and one of some
thirty phrasings (`rtd_jax.text.phrasings`). The second asks for a modification and the caption that follows from it.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from absl import app, flags, logging

import clip_jax
from launch import llm
from launch.processes import commands
from launch.reading import InputError, paths, printable, shown
from rtd_jax import clips, losses
from rtd_jax.text import captions, masking, phrasings
from rtd_jax.text.triplets import MARKER, Triplets, fault, write

NEAREST = 20  # words that may replace one
SYNONYM = 0.98  # cosine above which two words mean the same
_ROWS = 1024  # words compared at a time with all of their kind

INSTRUCTION = (
    "You help to build a data set for searching images with a reference image and a text. For the caption of an image, "
    "invent one plausible change and answer with a JSON object of two strings: "
    '"modification", which says what changes and continues the phrase "a photo that" in at most ten words; and '
    '"target", the caption of the changed image, in the style of the first and otherwise like it.'
)


def substitutes(
    clip: clip_jax.Clip, kinds: Mapping[str, str], *, nearest: int = NEAREST, synonym: float = SYNONYM
) -> dict[str, list[str]]:
    """Words that may replace each word: of its kind, the most similar first, without synonyms.

    Args:
      clip: its text encoder says what is similar, by "a photo of WORD".
      kinds: word -> kind.
      nearest: the most words returned for one word.
      synonym: cosine above which two words are synonyms.

    Returns:
      word -> words; a word with none is left out.
    """
    members: dict[str, list[str]] = defaultdict(list)
    for word, kind in kinds.items():
        members[kind].append(word)
    result: dict[str, list[str]] = {}
    for words in members.values():
        vectors = clip_jax.embed_texts(clip, [f"a photo of {word}" for word in words], progress=False)
        vectors = losses.unit_rows(vectors)
        for start in range(0, len(words), _ROWS):  # with spaCy a kind may have tens of thousands
            similarity = vectors[start : start + _ROWS] @ vectors.T
            similarity = np.where(similarity < synonym, similarity, -np.inf)
            place = np.arange(len(similarity))
            similarity[place, start + place] = -np.inf  # a word is no substitute for itself
            order = np.argsort(-similarity, axis=1, kind="stable")[:, :nearest]
            for i, word in enumerate(words[start : start + _ROWS]):
                if others := [words[j] for j in order[i] if similarity[i, j] > -np.inf]:
                    result[word] = others
    return result


def by_rules(
    clip: clip_jax.Clip, texts: Sequence[str], matcher: masking.Matcher, *, seed: int, per_caption: int = 1
) -> Triplets:
    """Triplets by the exchange of one keyword.

    Words come from the captions. A caption without a word that can be exchanged gives no triplet.

    Args:
      clip: see `substitutes`.
      texts: captions.
      matcher: finds keywords and their kinds.
      seed: caption i's triplets are a function of (seed, i, the words of all captions).
      per_caption: the most triplets of one caption; their targets differ.

    Raises:
      ValueError: the captions give no triplet.
    """
    texts = [text for text in texts if MARKER not in text]
    keywords = matcher.find(texts)
    kinds: dict[str, str] = {}
    for text, words in zip(texts, keywords, strict=True):
        for word in words:
            kinds.setdefault(text[word.start : word.end].lower(), word.kind)
    others = substitutes(clip, kinds)
    rows = []
    for i, (text, words) in enumerate(zip(texts, keywords, strict=True)):
        generator = np.random.default_rng(np.random.SeedSequence((seed, i)))
        places = [word for word in words if text[word.start : word.end].lower() in others]
        targets = {text}
        for _ in range(per_caption if places else 0):
            row = _exchange(text, places[generator.integers(len(places))], others, kinds, generator)
            if row[2] not in targets and not fault(*row):
                rows.append(row)
                targets.add(row[2])
    if not rows:
        raise ValueError(f"{len(texts)} captions gave no triplet: no two keywords of a kind ({matcher.note})")
    logging.info("%d triplets of %d captions (keywords by %s)", len(rows), len(texts), matcher.note)
    return Triplets(*map(list, zip(*rows, strict=True)))


def _exchange(
    text: str, word: masking.Keyword, others: Mapping[str, list[str]], kinds: Mapping[str, str], generator
) -> tuple[str, str, str]:
    """(caption, modification, caption with another word in this one's place)."""
    old = text[word.start : word.end].lower()
    new = others[old][generator.integers(len(others[old]))]
    phrasing = phrasings.of_kind(kinds[old])
    modification = phrasing[generator.integers(len(phrasing))].format(old=old, new=new)
    before = _article(text[: word.start], old, new)
    return text, modification, before + new + text[word.end :]


def _article(before: str, old: str, new: str) -> str:
    """The text before a word, its article "a" or "an" changed to suit the new word if it suited the old one."""
    for article, other in (("a", "an"), ("an", "a")):
        if f" {before.lower()}".endswith(f" {article} "):
            vowels = [word[0] in "aeiou" for word in (old, new)]
            if vowels[0] == (article == "an") and vowels[1] != vowels[0]:
                at = len(before) - len(article) - 1
                return before[:at] + (other.capitalize() if before[at].isupper() else other) + " "
    return before


def by_llm(model: llm.Llm, texts: Sequence[str], *, workers: int = 8, progress: bool = True) -> Triplets:
    """Triplets by a language model, one per caption; answers are kept in the model's log.

    Captions that the endpoint refuses, or that the model does not answer in the requested form, are skipped and logged.

    Raises:
      launch.llm.EndpointError, launch.llm.ReplyError: see `launch.llm.Llm.ask_all`.
    """
    texts = list(dict.fromkeys(text for text in texts if MARKER not in text))
    questions = [llm.Question(f"Caption: {text}", system=INSTRUCTION) for text in texts]
    answers = model.ask_all(questions, parse=_parse, workers=workers, progress=progress, set_aside=True)
    answered = [(text, *answer) for text, answer in zip(texts, answers, strict=True) if isinstance(answer, tuple)]
    rows = [row for row in answered if not fault(*row)]
    if len(rows) < len(answered):
        logging.warning("%d of %d answers left out: they repeat the caption", len(answered) - len(rows), len(answered))
    for text, answer in zip(texts, answers, strict=True):
        if isinstance(answer, Exception):
            logging.warning("no triplet of the caption %s: %s", shown(text), answer)
    if len(answered) < len(texts):
        logging.warning("%d of %d captions set aside, named above", len(texts) - len(answered), len(texts))
    if not rows:
        raise ValueError(f"{len(texts)} captions gave no triplet")
    return Triplets(*map(list, zip(*rows, strict=True)))


def _parse(reply: str) -> tuple[str, str]:
    """(modification, target) of a reply, or a ValueError that says what is wrong with it."""
    answer = llm.strict_json(reply)
    if not isinstance(answer, dict) or set(answer) != {"modification", "target"}:
        raise ValueError('it is not a JSON object with "modification" and "target"')
    if problem := fault("a caption", answer["modification"], answer["target"]):
        raise ValueError(problem)
    return answer["modification"].strip().rstrip("."), answer["target"].strip()


@commands.ending()
def main(argv: Sequence[str]) -> None:
    generate()


def generate() -> None:
    """Generate and write the triplets that the flags ask for."""
    f = flags.FLAGS
    out = paths.path(f.out, "--out")
    if out.suffix != ".jsonl":
        raise InputError("--out has to end in .jsonl", value=f.out)
    texts = captions.read(f.captions, column=f.column)[: f.limit or None]
    out.parent.mkdir(parents=True, exist_ok=True)
    if f.llm:
        endpoint = llm.Endpoint(f.llm, base_url=f.base_url, key_variable=f.key_variable)
        made = by_llm(llm.Llm(endpoint, out.with_suffix(".log.jsonl")), texts)
    else:
        matcher = masking.create(f.matcher)
        made = by_rules(clips.load(f.clip), texts, matcher, seed=f.seed, per_caption=f.per_caption)
    write(out, made)
    print(f"{len(made)} triplets in {printable(out)}")


if __name__ == "__main__":
    flags.DEFINE_string("captions", None, "the file of captions: .txt, .jsonl, .json, .csv, .tsv")
    flags.DEFINE_string("column", "caption", "key or column of the captions")
    flags.DEFINE_string("out", None, "the .jsonl file to write")
    flags.DEFINE_string("clip", "embedded:scenes", "by rules: folder or hub name of the CLIP that finds similar words")
    flags.DEFINE_enum("matcher", "auto", masking.MATCHERS, "by rules: what finds keywords")
    flags.DEFINE_integer("per_caption", 1, "by rules: triplets per caption", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "by rules: seed of the draws")
    flags.DEFINE_integer("limit", 0, "number of captions to use, from the first; 0 for all", lower_bound=0)
    flags.DEFINE_string("llm", "", "name of the language model that makes the triplets")
    flags.DEFINE_string("base_url", "", "its endpoint; empty to use logged answers only")
    flags.DEFINE_string("key_variable", "OPENAI_API_KEY", "environment variable with its key; empty for none")
    flags.mark_flags_as_required(["captions", "out"])
    app.run(main, flags_parser=commands.parse)
