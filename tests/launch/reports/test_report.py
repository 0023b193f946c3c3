"""The report's page: complete, right, safe against what stands in runs, and shown by a browser without complaint."""

import base64
import csv
import hashlib
import html.parser
import io
import json
import os
import re
import shutil
import statistics
import subprocess
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from launch import report
from launch.reports import page, runs, settings
from tests.commands import REQUIRED
from tests.launch.reports import run_tree
from tests.launch.reports.run_tree import config, write_run

EVIL = """<script>alert(1)</script>"'><img src=x onerror=alert(2)>{{ 7 * 7 }}"""


class Parsed(html.parser.HTMLParser):
    """Elements with their attributes, texts of scripts, and the cells of every table."""

    def __init__(self, text: str):
        super().__init__()
        self.elements, self.scripts, self.tables, self.stack = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.stack.append(tag)
        if tag == "script":
            self.scripts.append("")
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append(["", dict(attributes)])

    def handle_endtag(self, tag):
        while self.stack and self.stack.pop() != tag:
            pass

    def handle_data(self, data):
        if "script" in self.stack:
            self.scripts[-1] += data
        elif {"td", "th"} & set(self.stack) and "table" in self.stack:
            self.tables[-1][-1][-1][0] += data

    def all_of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def table(self, *heads):
        """The texts of the rows of the first table that has these columns first."""
        texts = [[[text.strip() for text, _ in row] for row in table] for table in self.tables]
        return next(rows[1:] for rows in texts if rows and rows[0][: len(heads)] == list(heads))


def rendered(folder: Path, **options) -> str:
    studies = [settings.group(study) for study in runs.read(folder)]
    return page.render("runs", studies, made=run_tree.START, **{"megabytes": 1} | options)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return run_tree.write_sweep(tmp_path_factory.mktemp("runs") / "sweep")


@pytest.fixture(scope="module")
def sweep_page(sweep):
    return rendered(sweep)


def test_the_results_of_a_sweep(sweep_page):
    rows = Parsed(sweep_page).table("cosine_weight", "radius", "seeds", "test accuracy ↑", "gradient, RPS ε=8PCC ↑")
    assert [row[:3] for row in rows[::4]] == [["0.01", "4", "3"], ["0.1", "8", "3"], ["1", "16", "1 of 3"]]
    values = [run_tree.accuracy(0.01, 16.0, seed) for seed in range(3)]
    assert rows[2][3] == f"{statistics.fmean(values):.3f} ± {statistics.stdev(values):.3f}"
    assert rows[8][3] == f"{run_tree.accuracy(1.0, 16.0, 0):.3f}"
    best = re.findall(r'<td class="number best"[^>]*>([^<]*)</td>', sweep_page)
    assert best[:3] == ["0.900 ± 0.010", "0.701 ± 0.001", "0.701 ± 0.001"]
    tables = Parsed(sweep_page)
    every = tables.table("cosine_weight", "radius", "seeds", "test accuracy ↑", "test cross-entropy ↓")
    assert [row[4] for row in every][4] == "0.100 ± 0.010" and len(every) == 9
    assert [row[:4] for row in tables.table("under")][4] == ["RPS ε=8", "0.1", "8", "3"]


def test_a_page_of_a_sweep_has_all_its_parts(sweep_page):
    parsed = Parsed(sweep_page)
    assert "27 runs: 25 finished, 1 failed, 1 not started" in sweep_page
    assert len(parsed.table("run", "status")) == 27
    config_rows = {row[0]: row[1] for row in parsed.table("key", "value")}
    assert config_rows["regularizer.cosine_weight"] == "0.01 · 0.1 · 1.0" and config_rows["optimizer.name"] == "adam"
    assert ["jax", "0.10.2"] in parsed.table("", "version")
    assert "2 of the runs recorded no versions." in sweep_page
    assert "exit status 1\nstep 2\nTraceback\nboom" in sweep_page
    assert {"val/accuracy", "train/loss", "train/gradient_norm"} <= set(re.findall(r"<h4>([^<]*)</h4>", sweep_page))
    assert len(parsed.all_of("option")) == 2


def test_one_run(tmp_path):
    result = {"test/accuracy": 0.5, "test/cross_entropy": None, "gradient/rps-4/pcc": 0.9, "test/examples": 9.0}
    path = write_run(tmp_path / "run", config(), result, curves={"loss": [1.0, 2.0]}, figures=["artifacts/a/b.png"])
    (path / "artifacts" / "no.png").write_bytes(b"GIF89a not a PNG")
    (path / "table.md").write_text("| of earlier versions |")
    text = rendered(path)
    parsed = Parsed(text)
    assert parsed.table("metric", "RPS ε=4") == [["PCC ↑", "0.900"]]
    assert parsed.table("metric", "value") == [["test accuracy ↑", "0.500"], ["test cross-entropy ↓", "nan"]]
    all_metrics = [[[text.strip() for text, _ in row] for row in table] for table in parsed.tables]
    assert ["test/examples", "9"] in [row for table in all_metrics for row in table]
    assert "of earlier versions" not in text
    (image,) = parsed.all_of("img")
    assert base64.b64decode(image["src"].removeprefix("data:image/png;base64,")) == run_tree.png()
    assert (image["width"], image["height"], image["alt"]) == ("6", "4", "a/b")
    assert "Not in this page: run/artifacts/no.png." in text
    assert "finished" in text and "These runs recorded no versions." in text


def test_the_caption_of_a_figure(tmp_path):
    path = write_run(tmp_path / "run", config(), {"test/accuracy": 0.5}, figures=["plain.png", "figures/many.png"])
    for name, caption in (("latin", "x & y"), ("unicode", "ε = 4 <b>")):
        notes = PngInfo()
        notes.add_text("Description", caption) if name == "latin" else notes.add_itxt("Description", caption)
        Image.new("RGB", (3, 2)).save(path / f"{name}.png", pnginfo=notes)
    (path / "cut.png").write_bytes(run_tree.png()[:45])
    text = rendered(path)
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", text)
    assert captions == ["cut", "figures/many", "latin<br>x &amp; y", "plain", "unicode<br>ε = 4 &lt;b&gt;"]


def test_earlier_results_are_shown_beside_the_present_one(tmp_path):
    path = write_run(tmp_path / "run", config(batch_size=64), {"test/accuracy": 0.75})
    run_tree.write_earlier(path, 1, config(), {"test/accuracy": 0.5})
    text = rendered(path)
    assert Parsed(text).table("metric", "now", "earlier result 1") == [["test/accuracy ↑", "0.750", "0.500"]]
    assert "Earlier result 1, of another config (then → now):" in text and "batch_size: 32 -&gt; 64" in text
    write_run(tmp_path / "other", config(), {"test/accuracy": 0.25})
    assert Parsed(rendered(tmp_path)).table("metric", "now", "earlier result 1")  # of a member, too


def test_an_experiment_that_cannot_be_imported_is_said(tmp_path):
    text = rendered(write_run(tmp_path / "run", config(experiment="no.such"), {"a/b": 0.5}))
    assert "no.such cannot be imported" in text and Parsed(text).table("metric", "value") == [["a/b", "0.500"]]


def test_a_run_that_has_only_begun(tmp_path):
    text = rendered(write_run(tmp_path / "run", config()))
    assert "unfinished" in text and Parsed(text).table("key", "value")


def test_a_folder_of_several_studies(tmp_path):
    for name in ("m1", "m2"):
        write_run(tmp_path / name, config(seed=int(name[1])), {"x": 1.0})
    write_run(tmp_path / "c", config(experiment="comparison"), {"mean": 1.0})
    write_run(tmp_path / "c" / "inside", config(), {"x": 1.0})
    parsed = Parsed(rendered(tmp_path))
    links = [link["href"] for link in parsed.all_of("a")]
    assert links == ["#study-0", "#study-1"]
    assert [s["id"] for s in parsed.all_of("section")] == ["study-0", "study-1"]


def test_figures_beyond_the_limit_are_named(tmp_path):
    size = len(run_tree.png())
    names = [f"{at}.png" for at in range(5)]
    path = write_run(tmp_path / "run", config(), {"x": 1.0}, figures=names)
    text = rendered(path, megabytes=3.5 * size / 1e6)
    assert [image["alt"] for image in Parsed(text).all_of("img")] == ["0", "1", "2"]
    assert "Not in this page: run/3.png, run/4.png." in text


# -- safety ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evil_page(tmp_path_factory):
    """Wherever a run can put text, it puts markup."""
    root = tmp_path_factory.mktemp("evil")
    for at in range(8):
        changed = config(
            **{EVIL: f"{at}{EVIL}", "experiment": EVIL, "optimizer__name": EVIL * at, "regularizer__radius": float(at)}
        )
        curves = {f"train/{EVIL}": [1.0, 2.0], "loss": [1.0, 2.0]}
        name = f"run{at} <b onclick=alert(3)>"
        result = {f"{EVIL}/accuracy": at / 10, "loss": 0.1} if at else None
        files = {} if at else {"error.txt": EVIL, "log.txt": EVIL + "</pre>"}
        extra = {"versions": [{EVIL: EVIL}], "figures": ["<i>.png"]}
        write_run(root / name, changed, result, curves=curves, files=files, **extra)
        run_tree.write_earlier(root / name, 1, changed | {EVIL: EVIL}, {EVIL: 0.5})
    (root / "run1 <b onclick=alert(3)>" / "versions.json").write_text("{" + EVIL)
    return rendered(root)


def test_nothing_from_runs_becomes_markup(evil_page):
    parsed = Parsed(evil_page)
    script = resources.files("launch.reports").joinpath("templates/page.js").read_text()
    assert parsed.scripts == [script]
    tags = {tag for tag, _ in parsed.elements}
    assert not tags & {"b", "i", "iframe", "object", "embed", "base", "form"}
    assert evil_page.count("alert(1)") > 20 and "49" not in re.findall(r">(\d+)<", evil_page)  # it is there, as text
    for tag, attributes in parsed.elements:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,", "data:,")), (tag, attributes)
    assert "url(" not in evil_page and "@import" not in evil_page


def test_the_page_forbids_what_it_does_not_need(evil_page):
    parsed = Parsed(evil_page)
    digest = base64.b64encode(hashlib.sha256(parsed.scripts[0].encode()).digest()).decode()
    (policy,) = [m["content"] for m in parsed.all_of("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'" and rules["script-src"] == f"'sha256-{digest}'"
    assert rules["img-src"] == "data:"


# -- the command ----------------------------------------------------------------------------------------------------


def test_the_command(tmp_path, capsys):
    path = write_run(tmp_path / "run", config(), {"test/accuracy": 0.5})
    report.main([str(path)])
    assert capsys.readouterr().out == f"{path / 'report.html'}\n"
    assert (path / "report.html").read_text().startswith("<!DOCTYPE html>")
    run_tree.write_plan(path, {"training-0000000000000000": {"loss": [1.0]}})
    (path / "store" / "training-0000000000000000" / "metrics.jsonl").write_text("no\n")
    report.main([str(path), "--out", str(tmp_path / "other.html")])
    assert "metrics.jsonl, line 1" in capsys.readouterr().err
    assert "metrics.jsonl, line 1" in (tmp_path / "other.html").read_text()


def test_the_tables_of_all_studies_are_printed_and_written(tmp_path, capsys):
    """Those of runs side by side, and of a run by itself; an unfinished run has none."""
    root = tmp_path / "s"
    for seed in range(2):
        write_run(root / f"a{seed}", config(seed=seed), {"test/accuracy": 0.5 + seed / 4})
    write_run(root / "b", config(experiment="other"), {"x": 0.25})
    write_run(root / "c", config(experiment="third"))
    files = [tmp_path / "s" / "report.html", tmp_path / "r.csv", tmp_path / "r.tex"]
    report.main([str(root), "--tables", f"--csv={files[1]}", f"--latex={files[2]}"])
    out = capsys.readouterr().out
    first, second = out.split(f"{root / 'b'} (other)")
    assert first.startswith(f"{root} (tests.launch.reports.described)\n\n| metric ")
    assert "| test accuracy ↑ | 0.625 ± 0.177 |" in first and re.search(r"\| x +\| 0.250 \|", second)
    assert "third" not in out and out.endswith("".join(f"{file}\n" for file in files))
    rows = list(csv.DictReader(io.StringIO(files[1].read_text())))
    assert [(row["study"], row["key"], float(row["mean"])) for row in rows] == [
        ("", "test/accuracy", 0.625),
        ("b", "x", 0.25),
    ]
    assert r"test accuracy $\uparrow$ & 0.625 $\pm$ 0.177 \\" in files[2].read_text()


def test_metrics_as_asked(tmp_path, sweep):
    out = tmp_path / "r.html"
    report.main([str(sweep), f"--out={out}", "--metric=pcc", "--metric=best_step", "--lower=pcc"])
    rows = Parsed(out.read_text()).table("cosine_weight", "radius", "seeds", "gradient, RPS ε=8PCC ↓", "best step")
    assert rows[0][4] == "400 ± 0"


def test_a_metric_of_one_experiment_among_several(tmp_path):
    for name, metric in (("a", "test/wga"), ("b", "test/recall")):
        for seed in range(2):
            own = config(experiment=f"{name}.experiment", seed=seed)
            write_run(tmp_path / "s" / f"{name}{seed}", own, {metric: 0.5 + 0.25 * seed})
    report.main([str(tmp_path / "s"), "--metric=wga"])
    text = (tmp_path / "s" / "report.html").read_text()
    assert "test/wga" in text and "test/recall" in text
    with pytest.raises(SystemExit, match="no metric matches 'speed'; valid metrics: test/wga, test/recall"):
        report.main([str(tmp_path / "s"), "--metric=speed"])


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["{}/nowhere"], "nowhere is not a folder"),
        (["{}"], "no run in"),
        (["{}/run", "--metric=speed"], "no metric matches 'speed'; valid metrics: test/accuracy"),
        (["{}/run", "--csv={}/missing/r.csv"], "missing/r.csv cannot be written"),
        (["{}/run", "--out={}/missing/r.html"], "cannot be written .* choose another place with --out"),
    ],
)
def test_bad_input_is_explained(tmp_path, arguments, said):
    if "/run" in arguments[0]:
        write_run(tmp_path / "run", config(), {"test/accuracy": 0.5})
    with pytest.raises(SystemExit, match=said):
        report.main([argument.format(tmp_path) for argument in arguments])


def test_nothing_is_imported_from_among_the_runs(tmp_path, monkeypatch, capsys):
    """Runs that came from elsewhere bring no code: not even to somebody who stands in their folder."""
    for name in ("module.py", "package/__init__.py", "package/experiment.py", "namespace/experiment.py"):
        (tmp_path / "runs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "runs" / name).write_text("print('IMPORTED')\nprint(1 / 0)\n")
    names = ("module", "package.experiment", "namespace.experiment")
    for name in names:
        write_run(tmp_path / "runs" / name, config(experiment=name), {"x": 0.5})
    monkeypatch.syspath_prepend(tmp_path / "runs")
    report.main([str(tmp_path / "runs")])
    assert "IMPORTED" not in capsys.readouterr().out
    text = (tmp_path / "runs" / "report.html").read_text()
    assert all(f"{name} lies among the runs and is not imported" in text for name in names)


def test_a_bad_pattern_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        report.main([str(tmp_path), "--metric=("])
    assert "'(' is not a regular expression" in capsys.readouterr().err


# -- in a browser ---------------------------------------------------------------------------------------------------


def browse(file: Path, *options: str) -> tuple[str, list[str]]:
    """Open a page in headless Chromium: what it prints, and the lines of the page's console."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        (pytest.fail if REQUIRED else pytest.skip)("no chromium here (`make test SYSTEM=yes` installs it)")
    command = [browser, "--headless=new", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr", "--v=0"]
    command += [f"--user-data-dir={file.parent / 'profile'}", "--virtual-time-budget=2000"]
    command += ["--no-sandbox"] if os.geteuid() == 0 else []
    command += ["--no-first-run", "--disable-background-networking", "--disable-dev-shm-usage"]
    done = subprocess.run([*command, *options, file.as_uri()], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def with_script(text: str, script: str) -> str:
    return text.replace("</body>", f"<script>{script}</script></body>")


def test_the_page_in_a_browser(tmp_path, sweep_page):
    """Light and dark: something is drawn, nothing complains."""
    file = tmp_path / "page.html"
    file.write_text(sweep_page)
    brightness = []
    for dark in (False, True):
        shot = tmp_path / "shot.png"
        options = ["--blink-settings=preferredColorScheme=0"] if dark else []
        _, console = browse(file, f"--screenshot={shot}", "--window-size=1200,1600", *options)
        assert console == []
        with Image.open(shot) as image:
            pixels = np.asarray(image.convert("RGB")).astype(int)
        assert pixels.shape == (1600, 1200, 3)
        paper = pixels[0, 0]
        drawn = np.abs(pixels - paper).sum(-1) > 60
        assert 0.01 < drawn.mean() < 0.5
        assert drawn[:800].any(1).mean() > 0.3 and drawn[800:].any(1).mean() > 0.3
        brightness.append(paper.mean())
    assert brightness[0] > 240 and brightness[1] < 40


def test_a_script_that_got_into_the_page_would_not_run(tmp_path, sweep_page):
    file = tmp_path / "page.html"
    file.write_text(with_script(sweep_page, "document.title = 'run'"))
    output, console = browse(file, "--dump-dom")
    assert "<title>runs</title>" in output
    assert any("Content Security Policy" in line for line in console)


CLICKS = """
const texts = (table, at) => [...table.tBodies[0].rows].filter((r) => !r.hidden).map((r) => r.cells[at].textContent);
const table = document.querySelector("table.sortable");
const heads = [...table.tHead.rows[0].cells];
const sorted = (at) => { heads[at].firstElementChild.click(); return texts(table, at); };
const found = { accuracy: sorted(3), again: sorted(3), weight: sorted(0), mark: heads[0].ariaSort };
const runs = [...document.querySelectorAll("input.filter")].map((f) => f.parentElement)
  .find((p) => p.textContent.includes("status"));
const field = runs.querySelector("input");
field.value = "NOT started"; field.dispatchEvent(new Event("input"));
found.filtered = texts(runs.querySelector("table"), 1);
const views = () => [...document.querySelectorAll(".view")].map((v) => !v.hidden);
found.first = views();
const choice = document.querySelector("select.views");
choice.selectedIndex = 1; choice.dispatchEvent(new Event("change"));
found.last = views();
found.widths = [innerWidth, document.documentElement.scrollWidth];
parent.postMessage(JSON.stringify(found), "*");
"""
# windows are not as narrow as a phone, frames are
PHONE = """<!DOCTYPE html><title>phone</title><body><iframe width="360" height="700" src="page.html"></iframe><script>
addEventListener("message", (event) => document.body.replaceChildren(event.data));
</script></body>"""


def test_tables_sort_and_filter_and_the_page_fits_a_phone(tmp_path, sweep_page):
    file = tmp_path / "page.html"
    policy = re.search(r'<meta http-equiv="Content-Security-Policy"[^>]*>', sweep_page)[0]
    file.write_text(with_script(sweep_page.replace(policy, ""), CLICKS))
    (tmp_path / "phone.html").write_text(PHONE)
    output, console = browse(tmp_path / "phone.html", "--dump-dom")
    assert console == []
    found = json.loads(re.search(r"<body>(\{.*\})\s*</body>", output, re.DOTALL)[1])
    means = [float(text.split(" ± ")[0]) for text in found["accuracy"]]
    assert len(means) == 9 and means == sorted(means, reverse=True)  # the best first
    assert [float(text.split(" ± ")[0]) for text in found["again"]] == sorted(means)
    assert found["weight"] == ["1"] * 3 + ["0.1"] * 3 + ["0.01"] * 3 and found["mark"] == "descending"
    assert found["filtered"] == ["not started"]
    assert found["first"] == [True, False] and found["last"] == [False, True]
    assert found["widths"][0] == 360 and found["widths"][1] <= 360
