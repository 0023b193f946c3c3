"""The report and the language-model work, killed inside their writes: the next command leaves the same files."""

import json

from launch import train
from tests.commands import finish
from tests.kills.killing import Kill, assert_same, command, killed, only_with_system
from tests.launch import toy
from tests.launch.llm import endpoint

pytestmark = only_with_system


def test_a_report(tmp_path):
    """In a folder that is no run's, whose leftovers only the next report can remove."""
    train.execute(toy.get_config(), str(tmp_path / "run"))
    page, table = tmp_path / "page.html", tmp_path / "table.csv"
    arguments = (tmp_path / "run", f"--out={page}", f"--csv={table}")
    for file in (page, table):
        killed("launch.report", *arguments, kills=[Kill(rf"/{file.name}$")])
        assert len(list(tmp_path.glob(f".{file.name}.*.partial"))) == 1
    finish(command("launch.report", *arguments))
    assert {path.name for path in tmp_path.iterdir()} == {"run", "page.html", "table.csv"}
    assert "2.53" in table.read_text()


def test_captions_of_a_language_model(tmp_path):
    """The log of replies is cut, then the file of triplets: no question is asked again but the one that was cut."""
    (tmp_path / "captions.txt").write_text("".join(f"a photo of {n} apples\n" for n in range(6)))

    def answer(body, number):
        (message,) = [m["content"] for m in body["messages"] if m["role"] == "user"]
        return json.dumps({"modification": "is green", "target": message.replace("apples", "pears")[9:]})

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    with endpoint.serve(answer) as served:

        def arguments(folder):
            files = (f"--captions={tmp_path / 'captions.txt'}", f"--out={folder / 'triplets.jsonl'}")
            return (*files, "--llm=fake", f"--base_url={served.url}", "--key_variable=")

        finish(command("rtd_jax.text.generation", *arguments(whole)))
        killed("rtd_jax.text.generation", *arguments(cut), kills=[Kill(r"\.log\.jsonl$", "open", 3, "torn")])
        killed("rtd_jax.text.generation", *arguments(cut), kills=[Kill(r"/triplets\.jsonl$")])
        asked = len(served.requests)
        finish(command("rtd_jax.text.generation", *arguments(cut)))
        assert len(served.requests) == asked
    assert_same(cut, whole)
