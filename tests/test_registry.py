"""The registry: everything is found, nothing of a method is executed, and no broken plugin stops another."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

import kdbench
from kdbench.discovery.records import Broken
from kdbench.errors import ContractError, UsageError
from kdbench.registry import Registry, discover, load_method, method_manager, params_class
from tests.helpers.plugins import METHOD, install, write, write_method


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KDBENCH_PLUGINS", str(tmp_path / "drop"))
    (tmp_path / "drop").mkdir()


@pytest.fixture
def drop(tmp_path) -> Path:
    return tmp_path / "drop"


@pytest.fixture
def site(tmp_path, monkeypatch) -> Path:
    """A folder of ``sys.path`` to install into; modules imported from it are forgotten again."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        del sys.modules[name]


def new_problems(registry: Registry, *, among: str = "") -> list[Broken]:
    """What is broken below a path, without what may be wrong elsewhere."""
    return [broken for broken in registry.broken if among in f"{broken.place} {broken.source} {broken.reason}"]


# --- sources ----------------------------------------------------------------------------------------------------------


def test_the_repository_has_no_broken_plugin():
    registry = discover()
    assert {"vision", "llm"} <= set(registry.tracks)
    assert {"vision/teacher", "vision/no_kd", "llm/teacher", "llm/sft"} <= set(registry.methods)
    assert all(method.source == "built-in" for method in registry.methods.values())
    assert list(registry.methods) == sorted(registry.methods)


def test_every_source_is_found(drop, site, tmp_path):
    write_method(drop, "dropped")
    write_method(drop / "below", "dropped_below")
    given = write_method(tmp_path / "elsewhere", "given")
    folder = write_method(tmp_path / "folder", "in_folder").parent
    install(
        site,
        "acme-kd",
        "[kdbench]\nsingle = acme_single\nmany = acme.methods\n",
        {
            "acme_single.py": METHOD.format(slug="single", track="vision"),
            "acme/__init__.py": "raise RuntimeError('packages are not imported')\n",
            "acme/methods/__init__.py": "",
            "acme/methods/_shared.py": "x = 1\n",
            "acme/methods/helper.py": "y = 1\n",
            "acme/methods/first.py": METHOD.format(slug="first", track="vision"),
            "acme/methods/deep/second.py": METHOD.format(slug="second", track="llm"),
        },
    )
    registry = discover([given, folder])
    assert new_problems(registry, among=str(tmp_path)) == []
    sources = {method.key: (method.source, method.module) for method in registry.methods.values()}
    assert sources["vision/dropped"] == sources["vision/dropped_below"] == ("drop-in", None)
    assert sources["vision/given"] == sources["vision/in_folder"] == ("--plugin", None)
    assert sources["vision/single"] == ("entry point single (acme-kd 1.2)", "acme_single")
    assert sources["vision/first"] == ("entry point many (acme-kd 1.2)", "acme.methods.first")
    assert sources["llm/second"] == ("entry point many (acme-kd 1.2)", "acme.methods.deep.second")
    assert not {"acme", "acme_single", "acme.methods"} & set(sys.modules)


def test_a_file_that_is_found_twice_is_one_plugin(drop):
    path = write_method(drop, "once")
    registry = discover([path, drop, path])
    assert registry.methods["vision/once"].source == "drop-in"
    assert new_problems(registry, among=str(drop)) == []


def test_drop_in_folders_are_a_list_that_must_exist(tmp_path, monkeypatch):
    write_method(tmp_path / "a", "from_a")
    single = write_method(tmp_path / "b", "from_b")
    monkeypatch.setenv("KDBENCH_PLUGINS", os.pathsep.join([str(tmp_path / "a"), str(single), str(tmp_path / "gone")]))
    registry = discover()
    assert {"vision/from_a", "vision/from_b"} <= set(registry.methods)
    (broken,) = new_problems(registry, among=str(tmp_path))
    assert (broken.place, broken.reason) == (str(tmp_path / "gone"), "there is no such folder")


def test_the_default_folder_need_not_exist(tmp_path, monkeypatch):
    monkeypatch.delenv("KDBENCH_PLUGINS")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert new_problems(discover(), among=str(tmp_path)) == []
    write_method(tmp_path / "config" / "kdbench" / "plugins", "mine")
    assert "vision/mine" in discover().methods


@pytest.mark.parametrize(("name", "message"), [("nothing.py", "there is no file"), ("notes.txt", "is no Python file")])
def test_a_wrong_path_for_plugin_is_a_usage_error(tmp_path, name, message):
    write(tmp_path / "notes.txt", "hello")
    write_method(tmp_path, "nothings")
    with pytest.raises(UsageError, match=message) as caught:
        discover([tmp_path / name])
    assert caught.value.problems[0].place == "--plugin"


# --- broken plugins ---------------------------------------------------------------------------------------------------


def test_no_broken_file_stops_the_others(drop, site):
    sound = METHOD.format(slug="x", track="vision")
    write_method(drop, "sound")
    write(drop / "syntax.py", "def train(:\n")
    write(drop / "empty.py", "")
    write(drop / "cardless.py", "import torch\n")
    write(drop / "computed.py", sound.replace('slug="x"', "slug=name()"))
    write(drop / "hookless.py", sound.replace("@hookimpl\ndef train", "def helper"))
    write(drop / "trian.py", sound.replace("def train", "def trian"))
    write(drop / "argument.py", sound.replace("params)", "parameters)"))
    write_method(drop, "stray", "visoin")
    (drop / "latin.py").write_bytes(b"# caf\xe9\n" + sound.encode())
    os.mkfifo(drop / "pipe.py")
    (drop / "dangling.py").symlink_to(drop / "nowhere.py")
    install(site, "gone", "[kdbench]\nlost = module_that_is_gone\n")
    install(site, "odd", "[kdbench]\nodd = not a module!\n")
    install(site, "useless", "[console_scripts]\nx = y:z\n\n[kdbench]\nuse = useless\n", {"useless.py": "x = 1\n"})
    install(site, "garbled", "")
    (site / "garbled-1.2.dist-info" / "entry_points.txt").write_bytes(b"[kdbench]\nx = caf\xe9\n")

    registry = discover()

    assert "vision/sound" in registry.methods
    assert "vision/teacher" in registry.methods
    reasons = {Path(broken.place.split(":")[0]).name: broken for broken in new_problems(registry)}
    expected = {
        "syntax.py": "not valid Python",
        "empty.py": "there is no card",
        "cardless.py": "there is no card",
        "computed.py": "is not a literal",
        "hookless.py": "there is no train hook",
        "trian.py": "trian is no hook",
        "argument.py": "no argument 'parameters'",
        "stray.py": "there is no track 'visoin'",
        "latin.py": "not UTF-8",
        "pipe.py": "no regular file",
        "dangling.py": "cannot be read: No such file",
        "useless.py": "there is no card",
    }
    assert {name: reason for name, reason in expected.items() if reason not in reasons[name].reason} == {}
    assert reasons["stray.py"].place.endswith("stray.py:5:68")
    assert reasons["stray.py"].hint == "did you mean 'vision'?"
    assert reasons["trian.py"].hint == "did you mean 'train'?"
    by_source = {broken.source: broken.reason for broken in registry.broken}
    assert by_source["entry point lost (gone 1.2)"] == "there is no module 'module_that_is_gone'"
    assert "is no module" in by_source["entry point odd (odd 1.2)"]
    assert any("garbled" in broken.place for broken in registry.broken)


def test_of_two_methods_of_one_name_the_first_stays_and_both_files_are_told(drop, tmp_path):
    first = write_method(drop, "same")
    second = write_method(tmp_path / "other", "same")
    registry = discover([second])
    assert registry.methods["vision/same"].path == first
    (broken,) = new_problems(registry, among="vision/same")
    assert broken.place.startswith(str(second))
    assert str(first) in broken.reason


def test_a_built_in_method_is_not_replaced_silently(drop):
    path = write_method(drop, "teacher")
    registry = discover()
    assert registry.methods["vision/teacher"].source == "built-in"
    (broken,) = new_problems(registry, among=str(path))
    assert str(registry.methods["vision/teacher"].path) in broken.reason


def test_the_same_slug_in_two_tracks_is_two_methods(drop):
    write_method(drop / "a", "both", "vision")
    write_method(drop / "b", "both", "llm")
    registry = discover()
    assert registry.method("both", "llm").key == "llm/both"
    with pytest.raises(UsageError, match=r"several tracks .* \(write llm/both or vision/both\)"):
        registry.method("both")


# --- names ------------------------------------------------------------------------------------------------------------


def test_names_resolve_with_and_without_track(drop):
    write_method(drop, "mine")
    registry = discover()
    method = registry.methods["vision/mine"]
    assert registry.method("vision/mine") == registry.method("mine") == registry.method("mine", "vision") == method


@pytest.mark.parametrize(
    ("name", "track", "message"),
    [
        ("taed", None, "there is no method 'taed' (did you mean 'taid'"),
        ("llm/taed", None, "there is no method 'taed' in the track 'llm' (did you mean 'taid'"),
        ("taid", "vision", "there is no method 'taid' in the track 'vision' (there is llm/taid)"),
        ("lm/taid", None, "there is no track 'lm' (did you mean 'llm'"),
    ],
)
def test_unknown_names_are_told_with_a_suggestion(name, track, message):
    with pytest.raises(UsageError) as caught:
        discover().method(name, track)
    assert message in str(caught.value)


def test_who_asks_for_a_broken_method_learns_why(drop):
    path = write_method(drop, "ill", old="def train", new="def trian")
    for name in ("ill", "vision/ill"):
        with pytest.raises(UsageError) as caught:
            discover().method(name)
        assert "trian is no hook" in str(caught.value)
        assert caught.value.problems[0].place.startswith(f"{path}:13")


def test_support_is_by_star_task_or_family(drop):
    write_method(drop, "every")
    write_method(drop, "by_family", old='["*"]', new='["classify"]')
    write_method(drop, "by_task", old='["*"]', new='["digits-gap"]')
    write_method(drop, "by_full_name", old='["*"]', new='["vision/digits-gap"]')
    write_method(drop, "other_task", old='["*"]', new='["shapetex"]')
    write_method(drop, "other_track", "llm")
    registry = discover()
    spec = registry.task("vision/digits-gap", "smoke")
    fits = {method.slug for method in registry.methods.values() if registry.supports(method, spec)}
    assert {"every", "by_family", "by_task", "by_full_name"} <= fits
    assert not {"other_task", "other_track"} & fits


# --- extensions -------------------------------------------------------------------------------------------------------

SUITES = (
    "from pathlib import Path\nfrom kdbench import hookimpl\n\n@hookimpl\ndef kdbench_suites():\n    return {body}\n"
)


def test_each_extension_is_loaded_on_its_own(drop, site, tmp_path):
    write(drop / "good.py", SUITES.format(body="{'mine': Path('mine.yaml')}"))
    write(drop / "raises.py", "import kdbench\n1 / 0\n\n@kdbench.hookimpl\ndef kdbench_suites():\n    return {}\n")
    write(
        drop / "exits.py",
        "import sys\nimport kdbench\nsys.exit(3)\n@kdbench.hookimpl\ndef kdbench_suites():\n    pass\n",
    )
    write(drop / "missing.py", "import a_package_that_nobody_has\n" + SUITES.format(body="{}"))
    write(drop / "misspelt.py", SUITES.format(body="{}").replace("kdbench_suites", "kdbench_suits"))
    write(drop / "late.py", SUITES.format(body="{}['x']"))
    write(drop / "wrong.py", SUITES.format(body="'text'"))
    write(drop / "second.py", SUITES.format(body="{'mine': Path('other.yaml')}"))
    install(
        site,
        "objects",
        "[kdbench]\nobject = ext_objects:plugin\nno_object = ext_objects:nothing\nno_hooks = ext_objects:plain\n",
        {
            "ext_objects.py": "from kdbench import hookimpl\nfrom pathlib import Path\n\n"
            "class P:\n    @hookimpl\n    def kdbench_suites(self):\n        return {'from-object': Path('o.yaml')}\n\n"
            "plugin = P()\nplain = object()\n"
        },
    )
    registry = discover()
    suites = registry.suites()
    assert suites["mine"] == Path("mine.yaml")
    assert suites["from-object"] == Path("o.yaml")
    found = {broken.place: broken for broken in registry.broken}
    at = {Path(place.split(":")[0]).name: broken for place, broken in found.items()}
    assert at["raises.py"].reason == "importing it raised ZeroDivisionError: division by zero"
    assert at["raises.py"].place.endswith("raises.py:2")
    assert at["exits.py"].reason == "importing it raised SystemExit: 3"
    assert "a_package_that_nobody_has" in at["missing.py"].reason
    assert "did you mean 'kdbench_suites'" in at["misspelt.py"].hint
    assert "its hook kdbench_suites raised KeyError" in at["late.py"].reason
    reasons = " | ".join(broken.reason for broken in registry.broken)
    assert "returned a str instead of a Mapping" in reasons
    assert "'mine' of its hook kdbench_suites is taken by" in reasons
    assert "raised AttributeError" in found["entry point no_object (objects 1.2)"].reason
    assert "implements no hook" in found["entry point no_hooks (objects 1.2)"].reason
    assert registry.suites() == suites
    assert len(registry.broken) == len(set(registry.broken))


def test_an_extension_adds_a_track_and_tasks_for_its_methods(drop):
    write(
        drop / "sound_track.py",
        """
        from pathlib import Path
        from kdbench import hookimpl
        from kdbench.track import Track

        @hookimpl
        def kdbench_tracks():
            tasks = Path(__file__).with_name("sound.yaml")
            track = Track(name="sound", title="Sound", version=1, tasks=tasks, spec="x:Y", task="x:Z")
            return [track, Track(name="vision", title="Again", version=1, tasks=tasks, spec="x:Y", task="x:Z"), 3]
        """,
    )
    write(drop / "sound.yaml", "defaults: {family: speech}\ntasks:\n  words: {title: Words, scales: {cpu: {}}}\n")
    write_method(drop, "listen", "sound")
    registry = discover()
    assert registry.methods["sound/listen"].track == "sound"
    assert [entry.name for entry in registry.tasks() if entry.track == "sound"] == ["sound/words"]
    assert registry.tracks["vision"].title != "Again"
    reasons = [broken.reason for broken in new_problems(registry, among="sound_track")]
    assert any("the track 'vision' is contributed by kdbench.tracks already" in reason for reason in reasons)
    assert any("returned 3 among its tracks" in reason for reason in reasons)


def test_the_hooks_of_methods_are_not_hooks_of_extensions(drop):
    write(drop / "both.py", SUITES.format(body="{}") + "\n@hookimpl\ndef train(task, params):\n    return None\n")
    (broken,) = new_problems(discover(), among="both.py")
    assert "train does not belong into an extension" in broken.reason


# --- one method -------------------------------------------------------------------------------------------------------


def test_importing_is_left_to_the_worker(drop):
    path = write_method(drop, "needy", old='"""needy', new='import a_package_that_nobody_has\n\n"""needy')
    registry = discover()
    method = registry.methods["vision/needy"]
    assert method.imports == ("a_package_that_nobody_has",)
    with pytest.raises(ModuleNotFoundError, match="a_package_that_nobody_has"):
        load_method(path, None)
    assert not [name for name in sys.modules if name.startswith("kdbench_plugin_needy")]


def test_a_module_is_loaded_from_the_file_that_was_read(tmp_path):
    first = write_method(tmp_path / "a", "twin")
    second = write_method(tmp_path / "b", "twin", old="0.5", new="0.7")
    one, two = load_method(first, None), load_method(second, None)
    assert (params_class(one)().weight, params_class(two)().weight) == (0.5, 0.7)
    with pytest.raises(ImportError, match="importing it gives"):
        load_method(first, "kdbench.cards")


def test_a_manager_holds_the_extensions_and_one_method(drop):
    write(drop / "good.py", SUITES.format(body="{'mine': Path('mine.yaml')}"))
    path = write_method(drop, "one", old="task.student()", new="(task, params)")
    registry = discover()
    module = load_method(path, None)
    manager = method_manager(module, registry)
    assert manager.hook.train(task="T", params="P") == ("T", "P")
    assert manager.hook.evaluate(task="T", model="M", params="P") is None
    assert any("mine" in suites for suites in manager.hook.kdbench_suites())
    assert not hasattr(registry.manager.hook, "train")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("@hookimpl\ndef train(task, parms): pass\n", "parms"),
        ("@hookimpl\ndef train(task): pass\n@hookimpl\ndef evalute(task): pass\n", "evalute"),
        ("def train(task, params): pass\n", "no function train"),
    ],
)
def test_a_module_whose_hooks_do_not_fit_breaks_the_contract(body, message):
    module = ModuleType("odd")
    module.__file__ = "odd.py"
    exec(body, {"hookimpl": kdbench.hookimpl, "__name__": "odd"}, vars(module))
    with pytest.raises(ContractError, match=message):
        method_manager(module, Registry())
