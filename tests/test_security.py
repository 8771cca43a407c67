"""What is downloaded, written by models or typed by others can neither run code, leave its folder nor read a key."""

from __future__ import annotations

import ast
import io
import json
import pickle
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import rich.console
from fake_server import Server, fails, ok
from PIL import Image

from ttopt.__main__ import main
from ttopt.config.parsing import parse_fit
from ttopt.config.settings import ChatSettings, FitSettings, MethodSettings, SampleSettings, TeacherSettings
from ttopt.data import folder, vbvr
from ttopt.data.files import inside
from ttopt.data.find import find_samples
from ttopt.data.sample import Sample
from ttopt.errors import UserError
from ttopt.evaluate.report.headline import Headline
from ttopt.evaluate.report.page import render
from ttopt.evaluate.report.views import Broken, Clip, Page, SampleView
from ttopt.evaluate.table import Entry, Judged, rows
from ttopt.methods import make_method
from ttopt.models.chat import check_chat
from ttopt.models.reasoner import LightDecoder
from ttopt.models.reasoner.loading import load_networks
from ttopt.models.teacher import Teacher
from ttopt.record.result import Cost, Result, Scored
from ttopt.run.console import Console

ROOT = Path(__file__).parent.parent
SOURCES = [path for package in ("ttopt", "loop", "callbacks") for path in sorted((ROOT / package).rglob("*.py"))]
CAPTURE = pytest.CaptureFixture[str]


# No code from data

RUNS_CODE = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_sources_load_no_code(path: Path) -> None:
    """No pickles in any disguise, no code from the hub, no shell; weights are asked for as safetensors."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            assert not RUNS_CODE & {name.partition(".")[0] for name in names}, ast.unparse(node)
        if not isinstance(node, ast.Call):
            continue
        called, said = ast.unparse(node.func), ast.unparse(node)
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        assert called not in {"eval", "exec", "os.system", "os.popen", "torch.save", "torch.hub.load"}, said
        assert called != "torch.load" or options.get("weights_only") == "True", said
        assert called not in {"yaml.load", "yaml.load_all"} or ast.unparse(node.args[1]) == "_Loader", said
        assert not called.startswith("yaml.") or ("unsafe" not in called and "full" not in called), said
        assert options.get("trust_remote_code", "False") == "False", said
        assert options.get("allow_pickle", "False") == "False" and options.get("shell", "False") == "False", said
        if called.endswith(".from_pretrained"):
            tokens = "Tokenizer" in called
            assert tokens or called == "AutoConfig.from_pretrained" or options["use_safetensors"] == "True", said
            assert not called.startswith(("AutoT", "AutoC", "AutoM")) or options["trust_remote_code"] == "False", said


CALLED = [  # class paths that a stranger's configuration may name, with arguments that would do harm
    ("subprocess.Popen", {"args": ["touch", "pwned"]}),
    ("os.system", {"command": "touch pwned"}),
    ("pathlib.Path.touch", {"self": "pwned"}),
    ("builtins.open", {"file": "pwned", "mode": "w"}),
    ("shutil.copyfile", {"src": "c.yaml", "dst": "pwned"}),
    ("logging.FileHandler", {"filename": "pwned"}),
    ("ttopt.__main__.main", {"argv": ["fit"]}),
]


@pytest.mark.parametrize("path, arguments", CALLED, ids=[path for path, _ in CALLED])
@pytest.mark.parametrize("where", ["fit method", "fit callbacks", "compare"])
def test_what_is_no_method_and_no_callback_is_not_called(
    where: str, path: str, arguments: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: CAPTURE
) -> None:
    monkeypatch.chdir(tmp_path)
    entry = {"path": path, "arguments": arguments}
    content: dict[str, Any] = {"base": "mini"}
    content |= {"fit method": {"method": entry}, "fit callbacks": {"callbacks": [entry]},
                "compare": {"methods": [{"name": "single", **entry}]}}[where]  # fmt: skip
    Path("c.yaml").write_text(json.dumps(content))
    assert main([where.partition(" ")[0], "--config", "c.yaml"]) == 2
    said = capsys.readouterr()
    assert (
        said.out == f"note: c.yaml names code that will be imported: {path} (docs/security.md)\n" or path[:5] == "ttopt"
    )
    assert re.search(r"cannot be made|has no solve|is no Lightning callback", said.err) and said.err.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["c.yaml"]


@pytest.mark.parametrize(
    "path", ["", "Plain", ".", "..x", "a..b", "/tmp/x.py", "a/b.C", "a b.C", "os.system('x')", "x.1y"]
)
def test_what_is_no_dotted_path_is_not_imported(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    monkeypatch.setattr("ttopt.config.lookup.importlib.import_module", refuse)
    with pytest.raises(UserError, match="it is no dotted path of a class"):
        make_method(MethodSettings(path))


def test_code_that_a_file_names_is_told_of_before_it_is_imported(tmp_path: Path, capsys: CAPTURE) -> None:
    """Not what is shipped, nor what is typed."""
    for text, args, told in (
        ("method: {path: loop.StepLoop}", [], ""),
        ("seed: 1", ["--method.path", "mine.Own"], ""),
        (
            "method: {path: mine.Own}\ncallbacks: [{path: callbacks.Previews}, {path: theirs.C}]",
            [],
            "mine.Own, theirs.C",
        ),
    ):
        (tmp_path / "a.yaml").write_text(f"base: mini\n{text}")
        (tmp_path / "b.yaml").write_text("base: a.yaml")
        for name in ("a", "b"):
            parse_fit(["--config", str(tmp_path / f"{name}.yaml"), *args])
            line = f"note: {tmp_path / 'a.yaml'} names code that will be imported: {told} (docs/security.md)\n"
            assert capsys.readouterr().out == (line if told else "")
    with pytest.raises(SystemExit):
        parse_fit(["--help"])
    assert "A configuration can name code" in capsys.readouterr().out


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


NAMES = ("model.safetensors", "pytorch_model.bin", "diffusion_pytorch_model.bin", "model.pt")


@pytest.mark.parametrize("called", NAMES)
@pytest.mark.parametrize("part", ["reasoner/transformer", "reasoner/vae", "reasoner/text_encoder", "teacher", "light"])
def test_a_pickle_is_never_opened(part: str, called: str, folders: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    name = part.partition("/")[0]
    copy = Path(shutil.copytree(folders[name], tmp_path / name))
    place = tmp_path / part
    for file in place.glob("*.safetensors"):
        file.unlink()
        if called == "model.safetensors":
            file.write_bytes(pickle.dumps(Evil(tmp_path / "pwned")))
    if called != "model.safetensors":
        (place / called).write_bytes(pickle.dumps(Evil(tmp_path / "pwned")))
    with pytest.raises(UserError):
        if name == "reasoner":
            load_networks(copy, None, "float32", "float32", "cpu")
        elif name == "light":
            LightDecoder.load(copy)
        else:
            Teacher.load(copy)
    assert not (tmp_path / "pwned").exists()


def test_a_pickle_alone_is_no_model(tmp_path: Path) -> None:
    file = tmp_path / "taew2_2.pth"
    file.write_bytes(pickle.dumps(Evil(tmp_path / "pwned")))
    with pytest.raises(UserError, match="does not hold a TAEHV decoder"):
        LightDecoder.load(file)
    assert not (tmp_path / "pwned").exists()


def test_code_beside_a_model_is_not_run(folders: dict[str, Path], tmp_path: Path) -> None:
    code = f"from pathlib import Path\nPath({str(tmp_path / 'pwned')!r}).touch()\n"
    (tmp_path / "evil.py").write_text(code + "class Config: pass\n")
    (tmp_path / "config.json").write_text('{"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}')
    with pytest.raises(UserError, match=r"teacher .* cannot be loaded .*; fetch it again"):
        Teacher.load(tmp_path)
    assert not (tmp_path / "pwned").exists()


# Names

BAD_NAMES = [
    *(
        "",
        ".",
        "..",
        "../a",
        "a/../../b",
        "/etc/a",
        "a/b",
        "a\\b",
        "C:\\a",
        "C:a",
        "\\\\server\\a",
        "~",
        "~root",
        "$HOME",
    ),
    *(
        "a\0b",
        "a\nb",
        "a\rb",
        "a b",
        " a",
        "a ",
        "a.",
        "a...",
        ".a",
        "-rf",
        "_a",
        "a:b",
        "a*",
        "a?",
        'a"b',
        "a<b",
        "a|b",
    ),
    *("a∕b", "a⁄b", "a／b", "a＼b", "․․", "‥", "a\u202eb", "a\u200bb", "é", "ａ", "a" * 121, "a" * 100_000),
    *("con", "CON", "Con.txt", "prn", "aux", "nul", "NUL.a.b", "com1", "COM9.png", "lpt1", "lpt9.x"),
]


@pytest.mark.parametrize("name", BAD_NAMES, ids=lambda name: ascii(name[:20]))
def test_names_that_could_lead_elsewhere(name: str) -> None:
    with pytest.raises(UserError, match="cannot name a folder"):
        Sample(name, "go", None, 9, 8, 48, 48)


@pytest.mark.parametrize("name", ["a", "7", "console", "con-1", "comet", "com10", "a.b-c_d", "a" * 120])
def test_names_that_are_fine(name: str) -> None:
    assert Sample(name, "go", None, 9, 8, 48, 48).id == name


def samples_of(root: Path, dataset: Any = "folder") -> list[Sample]:
    form = SampleSettings(frames=9, height=48, width=48)
    return find_samples(FitSettings(dataset=dataset, root=str(root), sample=form, teacher=TeacherSettings(frames=9)))[0]


RULER = {"prompt": "go", "category": "c", "index": 1, "checklist": [{"Rule Coherence": "is it?"}]}


@pytest.mark.parametrize(
    "dataset, file, lines",
    [
        ("folder", "x.jsonl", [{"prompt": "go", "id": "Cat"}, {"prompt": "go", "id": "cat"}]),
        *(
            ("ruler", "data.jsonl", [RULER | {"task_name": name} for name in names])
            for names in (("a b", "a:b"), ("A", "a"), ("a\u00e9", "a\u00e8"))
        ),
    ],
)
def test_samples_never_share_a_folder(dataset: str, file: str, lines: list[dict[str, Any]], tmp_path: Path) -> None:
    """What differs in upper case, or only in what a name cannot hold, would be taken for one sample."""
    (tmp_path / file).write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(UserError, match="would share a folder; give each its own name"):
        samples_of(tmp_path / file if dataset == "folder" else tmp_path, dataset)


# Links

FORM = SampleSettings(frames=9, height=48, width=48)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A data set, and beside it what it must not reach."""
    (tmp_path / "secret.txt").write_text("a secret")
    Image.new("RGB", (48, 48)).save(tmp_path / "secret.png")
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.mark.parametrize("target", ["../secret.txt", "/etc/hostname"])
def test_links_out_of_a_folder_are_refused(outside: Path, target: str) -> None:
    (outside / "a.txt").symlink_to(target)
    with pytest.raises(UserError, match="a.txt lies outside .*; check the data set"):
        folder.samples("id", None, 0, 1, root=outside, form=FORM)


def test_linked_images_are_refused(outside: Path) -> None:
    (outside / "a.txt").write_text("go")
    (outside / "a.png").symlink_to("../secret.png")
    with pytest.raises(UserError, match="a.png lies outside"):
        folder.samples("id", None, 0, 1, root=outside, form=FORM)


@pytest.mark.parametrize("linked", ["prompt.txt", "first_frame.png"])
def test_links_in_a_benchmark_are_refused(outside: Path, linked: str) -> None:
    place = outside / "In-Domain_50/T-1_move_data-generator/00000"
    place.mkdir(parents=True)
    (place / "prompt.txt").write_text("go")
    Image.new("RGB", (48, 48)).save(place / "first_frame.png")
    assert len(vbvr.samples("id", None, 0, 1, root=outside, form=FORM)) == 1
    (place / linked).unlink()
    (place / linked).symlink_to(outside.parent / f"secret{Path(linked).suffix}")
    with pytest.raises(UserError, match=f"{linked} lies outside"):
        vbvr.samples("id", None, 0, 1, root=outside, form=FORM)


def test_links_in_a_circle_and_the_hubs_own(outside: Path, tmp_path: Path) -> None:
    (outside / "a").symlink_to("a")
    with pytest.raises(UserError, match="check the data set"):
        inside(outside, "a/b")
    hub = tmp_path / "datasets--x--y"  # as the hub's cache lies
    (hub / "blobs").mkdir(parents=True)
    (hub / "blobs/0123").write_text("go")
    (hub / "snapshots/main").mkdir(parents=True)
    (hub / "snapshots/main/a.txt").symlink_to("../../blobs/0123")
    assert folder.samples("id", None, 0, 1, root=hub / "snapshots/main", form=FORM)[0].prompt == "go"


# The page

HOSTILE = [
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "-->",
    "]]>",
    "</style>",
    "<style>*{display:none}</style>",
    "<img src=x onerror=alert(1)>",
    "'\"><svg onload=alert(1)>",
    "javascript:alert(1)",
    "' autofocus onfocus='alert(1)",
    '" style="background:url(http://evil.example/)',
    "<base href=//evil.example>",
    "<iframe src=//evil.example>",
    "<a href='javascript:alert(1)'>",
    "<meta http-equiv=refresh content=0>",
    "</details>",
    "{{ 7 * 7 }}",
    "{% raw %}",
    "${alert(1)}",
    "&lt;script&gt;",
    "\u2028\u2029\x00\x1b[2J",
    "</title>",
    "</option></select>",
]


def page(text: str) -> str:
    """A page in which everything that comes from elsewhere says ``text``."""
    score = Scored(False, 0.5, {text: False})
    result = Result(
        sample="a", family=text, split=text, prompt=text, method=text, accepted=True, stop=text, score=score,
        cost=Cost(1, 1, 1, 1), first_frame_ssim=None, seeds={}, seconds={"total": 1.0}, peak_mb={}, device=text,
        versions={}, finished=text, error=text,
    )  # fmt: skip
    entries = {name: {"a": Entry(result, Judged([0.5, 0.5], None, None))} for name in ("one", text)}
    verdict = {"verdict": text, "progress": text, "reason": text, "suggestion": text}
    judged = {"step": text, "attempt": text, "prompt": text, "verdict": verdict}
    trace = [judged, {"step": text, "role": text, "said": [(text, text), ("", text)]}]
    clips = [
        Clip(
            name, "wrong", "data:video/mp4;base64,AAAA", True, [0.5, 0.5], text, 0.5, text, 1,
            [Broken(text, text, [0])], text,
            [{"step": 0.0, "loss": 1.0}], [text, text], trace, [(text, text)],
        )
        for name in ("one", text)
    ]  # fmt: skip
    sample = SampleView("a", text, text, text, "", 8, 9, 48, 48, [text, text], clips)
    table = rows(entries, "one", lambda sample: text, {})
    opening = Headline(text, [(text, "repaired")], text, text)
    names, taus = ["one", text], {"one": 0.2, text: 0.2}
    return render(Page(text, opening, [(text, text)], "one", names, [sample], taus, "success", table))


class Structure(HTMLParser):
    """Tags with the names of their attributes, in order; and every value that an attribute has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, ...]] = []
        self.values: list[tuple[str, str]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, *(name for name, _ in attrs)))
        self.values += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        self.tags.append((f"/{tag}",))

    def handle_data(self, data: str) -> None:
        if self.lasttag == "script":
            self.scripts.append(data)


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text)[:40])
def test_hostile_texts_are_texts(text: str) -> None:
    """The page has the same elements and attributes whatever the texts say, and asks for nothing from elsewhere."""
    found, plain = Structure(page(text)), Structure(page("harmless"))
    assert found.tags == plain.tags
    assert [value for name, value in found.values if name == "style"] == [
        value for name, value in plain.values if name == "style"
    ]
    for name, value in found.values:
        assert not name.startswith("on")
        elsewhere = name in {"src", "href", "action", "srcset", "poster", "data"} and not value.startswith(
            ("data:", "#")
        )
        assert not elsewhere, value
    policy = next(value for name, value in found.values if name == "content" and "default-src" in value)
    assert policy.startswith("default-src 'none'") and "http" not in policy and "unsafe-eval" not in policy
    data = next(script for script in found.scripts if script.startswith('{"a":'))
    assert json.loads(data)["a"]["queries"] == {"one": [text, text], text: [text, text]}


def test_a_terminal_is_not_written_to_by_others() -> None:
    """Neither markup nor escape sequences in what data sets and models say reach the terminal."""
    text = "[/b][red]\x1b]0;title\x07\x1b[2J"
    result = Result(
        sample="a", family=text, split=text, prompt=text, method="m", accepted=None, stop=text, score=None,
        cost=Cost(1, 1, 1, 1), first_frame_ssim=None, seeds={}, seconds={"total": 1.0}, peak_mb={}, device="cpu",
        versions={}, finished="",
    )  # fmt: skip
    written = io.StringIO()
    console = Console(rich.console.Console(file=written, force_terminal=True, width=200, color_system="truecolor"))
    console.summary([result])
    console.print(text)
    with console.samples([Sample("a", "go", None, 9, 8, 48, 48)], 1) as progress:
        progress.note(text)
        progress.finished(result)
    assert (
        "\x1b]" not in written.getvalue() and "\x1b[2J" not in written.getvalue() and "\x07" not in written.getvalue()
    )
    assert written.getvalue().count("[/b][red]") >= 4


# Keys

KEY = "sk-recognisable-0123456789"
OTHER_KEYS = {"WANDB_API_KEY": "f" * 8 + "0123456789abcdef" * 2, "HF_TOKEN": "hf_recognisable987"}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("MY_KEY", KEY)
    for name, value in OTHER_KEYS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_MODE", "offline")
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


PLAN = {"task_complete": False, "instruction": f"go {KEY}", "estimated_steps_remaining": 1}
ANSWERS = {
    "refused": fails(401, f"Incorrect API key provided: {KEY}. Authorization: Bearer {KEY}"),
    "broken": fails(500, f"Bearer {KEY}"),
    "far into the page": (404, {"Content-Type": "text/html"}, "<p>" + "x" * 280 + KEY + "</p>"),
    "no reply": (200, {"Content-Type": "application/json"}, json.dumps({"authorization": f"Bearer {KEY}"})),
    "no JSON": (200, {"Content-Type": "application/json"}, f"Bearer {KEY}"),
    "a page": (200, {"Content-Type": "text/html"}, f"<html>{KEY}</html>"),
    "in the reply": ok(f"You sent Bearer {KEY}"),
    "in a usable reply": ok(json.dumps(PLAN)),
}


@pytest.mark.parametrize("command, answer", [("compare", "refused"), *(("fit", answer) for answer in ANSWERS)])
def test_keys_are_written_nowhere(
    command: str,
    answer: str,
    server: Server,
    folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Not by a run, its trace, its page, its W&B files, its messages: whatever the server makes of the key."""
    monkeypatch.chdir(tmp_path)
    server.answers = [ANSWERS[answer]]
    method = "{name: single, path: loop.StepLoop, arguments: {attempts: 1, verification: false, max_steps: 1}}"
    (tmp_path / "c.yaml").write_text(f"methods: [{method}]\nquestions: false")
    loop = ["--method.path", "loop.StepLoop", "--method.arguments.max_steps", "1"]
    loop += ["--method.arguments.verification", "false"]
    main([
        command, *(loop if command == "fit" else ["--config", "c.yaml"]), "--limit", "1",
        "--run-dir", str(tmp_path / "run"),
        "--reasoner.model", str(folders["reasoner"]), "--teacher.model", str(folders["teacher"]),
        "--decoder.kind", "light", "--decoder.model", str(folders["light"]), "--logging.wandb", "offline",
        "--chat.backend", "openai", "--chat.model", "m", "--chat.base_url", server.url, "--chat.key_env", "MY_KEY",
        "--chat.max_retries", "0", "--chat.timeout", "5",
    ])  # fmt: skip
    said = "".join(capfd.readouterr())
    assert server.requests and server.requests[0]["_key"] == f"Bearer {KEY}", "the server did get it"
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "trace.json" for path in files) and any(path.suffix == ".wandb" for path in files)
    for key in (KEY, *OTHER_KEYS.values()):
        assert key not in said
        assert [path for path in files if key.encode() in path.read_bytes()] == []


@pytest.mark.parametrize(
    "settings",
    [
        {"key_env": KEY},
        {"key_env": "AIzaSyRecognisable"},
        {"base_url": f"http://user:{KEY}@host/v1"},
        {"base_url": f"user:{KEY}@host"},
        {"base_url": f"https://host/v1?api_key={KEY}"},
        {"base_url": f"https://host/v1?access_token={KEY}&x=1"},
    ],
)
def test_a_key_in_the_wrong_place_is_not_repeated(settings: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    with pytest.raises(UserError, match="chat.") as error:
        check_chat(ChatSettings("openai", model="m", **settings))
    assert KEY not in str(error.value) and "Recognisable" not in str(error.value)
