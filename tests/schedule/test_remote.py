"""What goes to the machines of a cluster and comes back, and what is asked of them; without a cluster."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
import tarfile
import textwrap

import pytest

from kdbench.errors import UsageError
from kdbench.job import Resources
from kdbench.schedule import cluster, raytasks, remote, shipping
from kdbench.schedule.executor import Work
from kdbench.schedule.nodes import Node, Nodes, devices
from kdbench.schedule.packing import Capacity, Demand, Device, Slot, demand_of, fit
from kdbench.store import spool
from tests.helpers.outcomes import make_job, make_outcome
from tests.toytrack import EXTENSION, write_method

GIB = 1 << 30


def cluster_of(*nodes, workers=None):
    made = Nodes(workers)
    for number, (cpus, memory, *gpus) in enumerate(nodes):
        made.add(Node(f"n{number}", cpus, memory * GIB, tuple(Device(size * GIB, size * GIB) for size in gpus)))
    return made


# --- machines ---------------------------------------------------------------------------------------------------------


def test_the_loop_sees_the_sum_and_gpus_keep_their_numbers():
    nodes = cluster_of((4, 8, 10, 10), (2, 4, 20))
    assert nodes.capacity == Capacity(6, tuple(Device(size * GIB, size * GIB) for size in (10, 10, 20)), 12 * GIB)
    nodes.remove("n0")
    assert [device.total for device in nodes.capacity.gpus] == [0, 0, 20 * GIB]
    assert fit(Demand(1, gpus=1), nodes.capacity).gpus == (2,), "what is gone has nothing to give"
    nodes.add(Node("n2", 1, GIB, (Device(5, 5),)))
    assert [device.total for device in nodes.capacity.gpus] == [0, 0, 20 * GIB, 5]


def test_a_cluster_without_machines_gives_nothing_and_breaks_nothing():
    nodes = cluster_of((4, 8))
    nodes.remove("n0")
    capacity = nodes.capacity
    assert fit(demand_of(Resources(cpus=1, memory=1), capacity), capacity) is None
    assert nodes.refuses(Demand(1)) is not None


def test_work_that_fits_on_no_machine_is_refused_though_it_fits_on_the_sum():
    nodes = cluster_of((4, 8, 10), (4, 8, 10))
    assert nodes.refuses(Demand(1, memory=6 * GIB)) is None
    assert "8.0 GiB on the largest machine" in nodes.refuses(Demand(1, memory=9 * GIB))
    assert "asks for 2 GPUs" in nodes.refuses(Demand(1, gpus=2))
    assert nodes.refuses(Demand(1, gpu_memory=10 * GIB)) is None
    assert nodes.refuses(Demand(1, gpu_memory=11 * GIB)) is not None


@pytest.mark.parametrize("machines", [[(4, 8)], [(4, 8), (4, 64)], [(2, 2), (64, 512), (1, 30)], [(8, 1), (1, 8)]])
@pytest.mark.parametrize("cpus", [0.5, 1, 2, 16])
def test_what_is_not_refused_is_asked_of_some_machine_that_has_it(machines, cpus):
    nodes = cluster_of(*machines)
    whole = nodes.capacity
    demands = [demand_of(Resources(cpus=cpus), whole), Demand(min(cpus, whole.cpus), memory=whole.memory)]
    demands += [Demand(min(cpus, whole.cpus), memory=size << 20) for size in (1, 700, 3000, 40_000, 600_000)]
    for demand in demands:
        if nodes.refuses(demand) is None:
            slot = fit(demand, whole)
            for exact in (True, False):
                request = nodes.request(slot, exact=exact)
                assert any(node.cpus >= request.cpus and node.memory >= request.memory for node in nodes.there)
                assert request.cpus > 0


def test_an_equal_share_leaves_no_core_of_any_machine_idle():
    nodes = cluster_of((8, 4), (2, 64))
    slot = fit(demand_of(Resources(), nodes.capacity), nodes.capacity)
    request = nodes.request(slot, exact=False)
    for node in nodes.there:
        assert request.memory * node.cpus <= node.memory


def test_a_stated_size_is_reserved_whole():
    nodes = cluster_of((8, 4), (2, 64))
    request = nodes.request(Slot(1.0, memory=3 * GIB), exact=True)
    assert request.memory == 3 * GIB


def test_all_memory_of_the_sum_is_one_machine_alone():
    nodes = cluster_of((8, 32), (8, 64))
    assert nodes.refuses(Demand(1, memory=nodes.capacity.memory)) is None
    assert nodes.request(Slot(1.0, memory=nodes.capacity.memory), exact=False).memory == 64 * GIB


def test_gpu_memory_becomes_a_share_of_the_smallest_device_that_has_it():
    nodes = cluster_of((8, 64, 16, 16), (8, 64, 80), (8, 64))
    demand = Demand(1, gpu_memory=20 * GIB)
    slot = fit(demand, nodes.capacity)
    request = nodes.request(slot, exact=False)
    assert request.gpus == pytest.approx(20 / 80)
    assert request.nodes == ("n1",), "the devices of the other machine are too small"

    slot = fit(Demand(1, gpu_memory=8 * GIB), nodes.capacity)
    request = nodes.request(slot, exact=False)
    assert request.gpus == pytest.approx(8 / 16), "never more on a device than it has, whichever it is"
    assert request.nodes is None

    slot = fit(Demand(1, gpus=0.25, gpu_memory=8 * GIB), nodes.capacity)
    assert nodes.request(slot, exact=False).gpus == pytest.approx(8 / 16)


@pytest.mark.parametrize("asked", [1 / 3, 0.25, 1 / 7, 1.0])
def test_shares_of_a_device_never_sum_up_to_more_than_the_loop_thinks(asked):
    nodes = cluster_of((8, 64, 16))
    request = nodes.request(fit(Demand(1, gpus=asked), nodes.capacity), exact=False)
    assert asked - 1e-4 <= request.gpus <= asked
    assert round(request.gpus, 4) == request.gpus, "Ray counts in steps of a ten-thousandth"


def test_whole_devices_are_whole_and_of_one_machine():
    nodes = cluster_of((8, 64, 16, 16), (8, 64, 16))
    assert nodes.request(fit(Demand(1, gpus=2), nodes.capacity), exact=False).gpus == 2
    assert nodes.refuses(Demand(1, gpus=3)) is not None


def test_more_workers_than_cores_wait_for_machines_to_come():
    nodes = cluster_of((2, 8), workers=8)
    capacity = nodes.capacity
    assert capacity.cpus == 8
    demand = demand_of(Resources(), capacity)
    for _ in range(8):
        slot = fit(demand, capacity)
        assert nodes.request(slot, exact=False).memory <= 4 * GIB
        capacity = capacity.take(slot)
    assert cluster_of((8, 8), workers=2).capacity.cpus == 2


def test_devices_that_cannot_be_told_apart_count_as_the_least():
    assert devices(2, [(10, 1), (20, 5)]) == (Device(9, 10), Device(15, 20))
    assert devices(1, [(10, 1), (20, 5)]) == (Device(5, 10),)
    assert devices(2, []) == (Device(0, 0), Device(0, 0))


# --- plugins ----------------------------------------------------------------------------------------------------------


def test_plugins_arrive_with_the_package_that_they_are_part_of(tmp_path):
    alone = write_method(tmp_path / "own", "alone")
    (tmp_path / "own" / "data.bin").write_bytes(b"not a plugin")
    folder = tmp_path / "folder"
    write_method(folder / "deep", "inside")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "x.pyc").write_bytes(b"")
    cargo = shipping.load([EXTENSION, alone, folder], tmp_path / "sent")
    assert cargo.plugins == ("0/toytrack/extension.py", "1/alone.py", "2/folder")
    names = {path.relative_to(cargo.folder).as_posix() for path in cargo.folder.rglob("*") if path.is_file()}
    assert {"0/toytrack/tasks.yaml", "0/toytrack/spec.py", "1/alone.py", "2/folder/deep/inside.py"} <= names
    assert not any("data.bin" in name or name.endswith(".pyc") for name in names)
    assert cargo.name_of(folder / "deep" / "inside.py") == "2/folder/deep/inside.py"
    assert cargo.name_of(tmp_path / "own" / "data.bin") is None

    program = f"""
        import sys
        sys.path[:0] = [{str(tmp_path / "sent")!r}]
        from kdbench.registry import discover
        from kdbench.schedule.shipping import unloaded
        registry = discover([unloaded(name) for name in {cargo.plugins!r}])
        assert registry.broken == [], registry.broken
        assert "toy" in registry.tracks and {{"toy/alone", "toy/inside"}} <= set(registry.methods)
        arrived = [method.path for key, method in registry.methods.items() if key.startswith("toy/")]
        assert all(str(path).startswith({str(tmp_path / "sent")!r}) for path in arrived)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_without_plugins_nothing_is_sent(tmp_path):
    cargo = shipping.load([], tmp_path)
    assert cargo == shipping.Cargo(None, (), ())
    assert cluster.environment({}, cargo, tmp_path, ship=False)["py_modules"] == []


def test_a_folder_of_data_is_not_shipped(tmp_path, monkeypatch):
    monkeypatch.setattr(shipping, "LARGEST", 1000)
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "weights.bin").write_bytes(bytes(2000))
    with pytest.raises(UsageError, match="would be shipped to every machine"):
        shipping.load([tmp_path / "p"], tmp_path / "sent")


def test_what_did_not_arrive_is_said():
    with pytest.raises(UsageError, match=r"the plugin x\.py did not arrive"):
        shipping.unloaded("0/x.py")


def test_the_suites_runtime_environment_is_kept(tmp_path, monkeypatch):
    monkeypatch.delenv(cluster.SUBMITTED, raising=False)
    given = {"env_vars": {"A": "1", "KDBENCH_PLUGINS": "/x"}, "py_modules": ["gs://m.zip"], "pip": ["p"]}
    cargo = shipping.load([write_method(tmp_path / "own", "m")], tmp_path / "sent")
    made = cluster.environment(given, cargo, tmp_path / "empty", ship=True)
    assert made["env_vars"] == given["env_vars"]
    assert made["pip"] == ["p"]
    assert [name.rpartition("/")[2] for name in made["py_modules"]] == [*shipping.PACKAGES, shipping.CARGO, "m.zip"]
    assert made["working_dir"] == str(tmp_path / "empty"), "no path of this machine is imported from"
    assert cluster.environment({"working_dir": "s3://w.zip"}, cargo, tmp_path, ship=True)["working_dir"] == "s3://w.zip"
    monkeypatch.setenv(cluster.SUBMITTED, "{}")
    assert "working_dir" not in cluster.environment({}, cargo, tmp_path, ship=True), "ray job submit has chosen"


def test_equal_code_has_an_equal_digest_wherever_it_is(tmp_path):
    program = f"""
        import shutil, sys
        from kdbench.schedule import shipping
        for name in shipping.PACKAGES:
            ignored = shutil.ignore_patterns("packs", "__pycache__")
            shutil.copytree(shipping.package_folder(name), {str(tmp_path)!r} + "/" + name, ignore=ignored)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True)
    ask = [sys.executable, "-c", "from kdbench.schedule.shipping import code_digest as d; import kdbench; print(d())"]
    before = subprocess.run(ask, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()
    assert before == shipping.code_digest()
    (tmp_path / "kdbench" / "budget.py").write_text("changed")
    after = subprocess.run(ask, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()
    assert after != before


# --- folders ----------------------------------------------------------------------------------------------------------


def sent(folder, name="."):
    return io.BytesIO(b"".join(shipping.packed([(folder, name)])))


def test_a_folder_arrives_as_it_was_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(shipping, "PIECE", 1000)
    folder = tmp_path / "a"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "w.bin").write_bytes(bytes(range(256)) * 40)
    (folder / "log.txt").write_text("text")
    (folder / "link").symlink_to("/etc/passwd")
    pieces = list(shipping.packed([(folder, ".")]))
    assert all(len(piece) == 1000 for piece in pieces[:-1])
    assert len(pieces) > 10
    target = tmp_path / "b"
    (target / "old").mkdir(parents=True)
    (target / "old" / "x").write_text("x")
    shipping.unpack(io.BytesIO(b"".join(pieces)), target)
    assert {path.name for path in target.rglob("*")} == {"model", "w.bin", "log.txt"}
    assert (target / "model" / "w.bin").read_bytes() == (folder / "model" / "w.bin").read_bytes()


def test_an_archive_writes_nowhere_else(tmp_path):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as made:
        member = tarfile.TarInfo("../outside")
        member.size = 1
        made.addfile(member, io.BytesIO(b"x"))
    with pytest.raises(tarfile.FilterError):
        shipping.unpack(archive, tmp_path / "t")
    assert not (tmp_path / "outside").exists()


def test_a_log_comes_in_parts_without_gaps(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "LONGEST_OUTPUT", 10)
    there, here = tmp_path / "there.txt", tmp_path / "here.txt"
    tail = remote._Tail(there)
    assert tail.new() == []
    for text in ("a" * 7, "b" * 25, ""):
        with there.open("a") as file:
            file.write(text)
        for output in tail.new():
            raytasks._write(here, output)
    while outputs := tail.new():
        raytasks._write(here, outputs[0])
    assert here.read_text() == there.read_text() == "a" * 7 + "b" * 25


def checkpoint(folder, number):
    """Write one as jobs do: new files, the header last, then what it does not name is removed."""
    folder = folder / spool.CHECKPOINT
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"state-{number}").write_text(str(number) * 100)
    spool.write_whole(folder / spool.CHECKPOINT_HEADER, str(number))
    for path in folder.glob("state-*"):
        if path.name != f"state-{number}":
            path.unlink()


def received(messages):
    return io.BytesIO(b"".join(piece.data for [piece] in messages))


def test_each_checkpoint_is_sent_once_and_the_latest_stays(tmp_path):
    there, here = tmp_path / "there", tmp_path / "here"
    checkpoint(there, 0)
    follower = remote._Checkpoints(there / spool.CHECKPOINT)
    assert list(follower.new()) == [], "it came from the coordinator"
    for number in (1, 2, 3):
        checkpoint(there, number)
        messages = list(follower.new())
        assert [piece.last for [piece] in messages] == [False] * (len(messages) - 1) + [True]
        assert list(follower.new()) == []
        here.mkdir(exist_ok=True)
        raytasks._put_checkpoint(here, received(messages))
        names = sorted(path.name for path in (here / spool.CHECKPOINT).iterdir())
        assert names == [spool.CHECKPOINT_HEADER, f"state-{number}"]
        assert spool.has_checkpoint(here)
        assert [path.name for path in here.iterdir()] == [spool.CHECKPOINT]


def test_a_checkpoint_that_changes_while_it_is_read_waits_for_the_next_look(tmp_path, monkeypatch):
    follower = remote._Checkpoints(tmp_path / spool.CHECKPOINT)
    checkpoint(tmp_path, 1)
    packed = shipping.packed

    def slowly(parts):
        pieces = list(packed(parts))
        checkpoint(tmp_path, 2)
        yield from pieces

    monkeypatch.setattr(shipping, "packed", slowly)
    assert list(follower.new()) == []
    monkeypatch.setattr(shipping, "packed", packed)
    raytasks._put_checkpoint(tmp_path, received(follower.new()))
    assert (tmp_path / spool.CHECKPOINT / "state-2").exists()


def test_pieces_end_with_the_last_one():
    for data in ([b""], [b"a"], [b"a", b"b", b"c"]):
        pieces = [piece for [piece] in remote._pieces("folder", iter(data))]
        assert b"".join(piece.data for piece in pieces) == b"".join(data)
        assert [piece.last for piece in pieces] == [False] * (len(data) - 1) + [True]


def test_folders_of_processes_that_were_killed_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(remote.tempfile, "gettempdir", lambda: str(tmp_path))
    with remote._scratch() as mine:
        root = mine.parent
        (root / "dead").mkdir()
        (root / "dead" / "x").write_text("x")
        (root / "dead.lock").touch()
        with remote._scratch() as other:
            assert mine.is_dir()
            assert other.is_dir()
            assert not (root / "dead").exists()
    assert list(root.iterdir()) == []


# --- work -------------------------------------------------------------------------------------------------------------


ONE_CORE = Slot(1.0)


def parcel(tmp_path, *, module=None, method=None, slot=ONE_CORE):
    job = make_job("kd").model_copy(update={"module": module, "method_file": tmp_path / "coordinator.py"})
    return remote.Parcel("k", Work(job.id, "job", job, tmp_path, slot, 1.0, memory_limit=1 << 60), method)


def test_a_methods_file_is_the_one_of_this_machine(tmp_path):
    found = remote._here(parcel(tmp_path, module="kdbench_methods.vision.kd"), tmp_path)
    assert found.job.method_file == shipping.package_folder("kdbench_methods") / "vision" / "kd.py"
    assert found.job.id == make_job("kd").id
    assert found.memory_limit < 1 << 60, "no more than this machine has"
    assert found.folder.is_dir()


def test_a_module_that_is_not_installed_here_is_said(tmp_path):
    with pytest.raises(UsageError, match=r"has no module other_methods\.kd .*install there"):
        remote._here(parcel(tmp_path, module="other_methods.kd"), tmp_path)


def test_devices_are_numbered_anew(tmp_path):
    slot = Slot(1.0, gpus=(5, 7), memory=1)
    found = remote._here(parcel(tmp_path, module="kdbench_methods.vision.kd", slot=slot), tmp_path)
    assert found.slot.gpus == (0, 1)


def test_what_is_logged_reaches_the_coordinator():
    warnings = remote._Warnings()
    logger = logging.getLogger("kdbench.test")
    logger.addHandler(warnings)
    logger.info("nothing")
    logger.warning("look at %s", "this")
    assert warnings.taken() == [remote.Warned("look at this")]
    assert warnings.taken() == []
    logger.removeHandler(warnings)


def objection(**changes):
    own = {"host": "h", "code": "this", "packages": cluster.package_versions()}
    probed = remote.Probed(**(own | {"missing": (), "broken": (), "gpus": ()} | changes))
    return cluster._objection("machine m", probed, "this")


def test_a_machine_that_cannot_run_the_jobs_is_named(caplog):
    assert objection() is None
    versions = cluster.package_versions()
    for changes, message in [
        ({"code": "other"}, "machine m: it has another version of kdbench"),
        ({"packages": {k: v for k, v in versions.items() if k != "torch"}}, "machine m: it lacks the packages torch"),
        ({"missing": ("audio",), "broken": ("x.py: why",)}, r"it lacks the tracks audio (x.py: why)"),
    ]:
        assert message in str(objection(**changes))
    assert caplog.text == ""
    assert objection(packages=versions | {"torch": "0.1"}) is None
    assert (
        f"machine m has other packages, which can change results: torch 0.1 (here {versions['torch']})" in caplog.text
    )


def test_outcomes_name_the_method_file_of_the_coordinator(tmp_path):
    """The folder of finished work is put where the coordinator's own would be."""
    there, here = tmp_path / "there", tmp_path / "here"
    here.mkdir()
    (here / spool.LOG).write_text("first half")
    job = make_job("kd")
    elsewhere = job.model_copy(update={"method_file": tmp_path / "elsewhere.py"})
    spool.write_outcome(there, make_outcome(elsewhere))
    (there / spool.LOG).write_text("first half, second half")
    work = Work(job.id, "job", job, here, Slot(1.0), 1.0)
    task = raytasks._Task(work, "k", None, 0.0, archives={"folder": sent(there)})
    raytasks.RayExecutor._arrived(None, task)
    outcome = spool.read_outcome(here)
    assert outcome.job == job
    assert outcome.metrics == make_outcome(job).metrics
    assert (here / spool.LOG).read_text() == "first half, second half"
