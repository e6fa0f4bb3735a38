"""Whatever lies in an artifact's or a run's folder: it loads, or an `AttarError` says why not; nothing else happens."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import struct
import tracemalloc

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attar import nets, recipes
from attar.artifacts import DistilledSet, Selection, Student, load
from attar.artifacts.aggregated import Aggregated, AggregatedStudent
from attar.artifacts.autoencoder import Autoencoder, Encoder
from attar.artifacts.dual import DualStudent
from attar.artifacts.quantized import QuantizedStudent
from attar.artifacts.trajectories import Trajectories
from attar.data.tokenizers import WordTokenizer
from attar.errors import AttarError, DamagedFile, RecipeError
from attar.nets import ConvNet, ViT
from attar.nets.dual import fresh_dual
from attar.nets.dual_specs import DualNet, ImageTower, TextTower
from attar.nets.masked import Decoder, fresh_autoencoder
from attar.nets.quantisation import Quantised, even_points
from attar.report.folder import read_folder
from attar.train.regression import Shape

few = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
LARGE = 10**12
ODD = st.sampled_from([None, True, -1, LARGE, 10**400, 1.5, "", "../..", "/etc/passwd", "nan", [], [[]], {}, {"a": []}])
JSON = st.recursive(ODD, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner))


def artifacts(images):
    rng = torch.Generator().manual_seed(0)
    net = ConvNet(depth=1, width=4)
    experts = [torch.rand(3, 5, generator=rng) for _ in range(2)]
    student = Student(nets.fresh(net, images, rng), net, 1, 8, images.classes)
    coded = Quantised(even_points(4), 16).coded(student.module.head.weight)
    joint = net.build(1, 8, 4 * images.num_classes)
    return {
        "aggregated-student": AggregatedStudent(Aggregated(joint, "turns"), net, 1, 8, images.classes),
        "autoencoder": autoencoder(),
        "distilled-set": DistilledSet.from_real(images, 2, rng, protocol="dsa"),
        "dual-encoder": dual_encoder(),
        "quantized-student": QuantizedStudent.of(student, {"head.weight": coded}),
        "selection": Selection(torch.arange(4), images.fingerprint, "memory", weights=torch.rand(4)),
        "student": student,
        "trajectories": Trajectories(experts, net, images),
    }


def dual_encoder():
    tower = {"width": 4, "depth": 1, "heads": 1, "head_width": 4}
    net = DualNet(image=ImageTower(patch=4, **tower), text=TextTower(context=4, **tower), dimensions=3)
    module = fresh_dual(net, Shape(1, 8, 1), torch.Generator().manual_seed(0), vocabulary=260, end=2)
    return DualStudent(module, net, WordTokenizer(["bag"]), channels=1, size=8, template="a {}")


def autoencoder():
    net, shape = ViT(patch=4, width=4, depth=1, heads=1), Decoder(width=4, depth=1, heads=1)
    made = fresh_autoencoder(net, shape, 16, Shape(1, 8, 1), torch.Generator().manual_seed(0))
    return Autoencoder.of(Encoder(made.encoder, net, 1, 8), made.decoder, shape, {"kind": "pixels"})


KINDS = [
    "aggregated-student",
    "autoencoder",
    "distilled-set",
    "dual-encoder",
    "quantized-student",
    "selection",
    "student",
    "trajectories",
]


@pytest.fixture
def saved(tiny_images, tmp_path):
    """Return a function that saves a good artifact of a kind and gives its folder."""

    def make(kind):
        return artifacts(tiny_images())[kind].save(tmp_path / kind)

    return make


def rewrite(folder, **changes):
    """Change artifact.json, which then claims what lies beside it."""
    tensors = (folder / "tensors.safetensors").read_bytes()
    about = json.loads((folder / "artifact.json").read_text())
    about |= {"tensors": {"size": len(tensors), "sha256": hashlib.sha256(tensors).hexdigest()}, **changes}
    (folder / "artifact.json").write_text(json.dumps(about))


def refused_or_loaded(folder, allowed=2_000_000):
    """Load, and see that this takes no more memory than what small files justify, whatever they claim."""
    tracemalloc.start()
    try:
        with contextlib.suppress(AttarError):
            load(folder)
        assert tracemalloc.get_traced_memory()[1] < allowed
    finally:
        tracemalloc.stop()


def container(header, body=b"\0" * 64):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


@few
@given(data=st.data())
@pytest.mark.parametrize("kind", KINDS)
def test_any_value_of_any_key_is_read_or_refused(saved, kind, data):
    folder = saved(kind)
    about = json.loads((folder / "artifact.json").read_text())
    key = data.draw(st.sampled_from(sorted({*about, "parents", "unheard"})))
    if key == "tensors":
        about["tensors"] = data.draw(JSON)
        (folder / "artifact.json").write_text(json.dumps(about))
    else:
        rewrite(folder, **{key: data.draw(JSON)})
    refused_or_loaded(folder)


@few
@given(text=st.binary(max_size=40) | st.sampled_from([b"[" * 200_000, b'{"kind":' * 90_000, b"9" * 5000, b"\xff\xfe"]))
def test_any_bytes_in_the_place_of_artifact_json_are_refused(saved, text):
    folder = saved("selection")
    (folder / "artifact.json").write_bytes(text)
    with pytest.raises(AttarError):
        load(folder)


DTYPES = st.sampled_from(["F32", "F64", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "C64", "X", ""])
SHAPES = st.lists(st.sampled_from([0, 1, 2, 4, 64, LARGE, 2**63, -1]), max_size=4)
OFFSETS = st.lists(st.sampled_from([0, 4, 16, 64, LARGE, 2**64, -1]), min_size=2, max_size=2)
NAMES = st.sampled_from(
    ["images", "labels", "indices", "expert.0000", "../../etc", "/abs", "__metadata__", "head.bias"]
)
HEADERS = st.dictionaries(
    NAMES, st.fixed_dictionaries({"dtype": DTYPES, "shape": SHAPES, "data_offsets": OFFSETS}) | JSON, max_size=4
)


@few
@given(header=HEADERS)
@pytest.mark.parametrize("kind", KINDS)
def test_any_header_of_tensors_is_read_or_refused(saved, kind, header):
    folder = saved(kind)
    (folder / "tensors.safetensors").write_bytes(container(header))
    rewrite(folder)
    refused_or_loaded(folder)


def test_a_header_longer_than_the_file_is_refused(saved):
    folder = saved("selection")
    for length in (LARGE, 2**64 - 1):
        (folder / "tensors.safetensors").write_bytes(struct.pack("<Q", length) + b"{}")
        rewrite(folder)
        with pytest.raises(DamagedFile, match="does not read as safetensors"):
            load(folder)


MLP = {"kind": "mlp", "depth": LARGE, "width": 10}


@pytest.mark.parametrize("net", [{"width": 100_000}, {"width": LARGE}, {"depth": LARGE}, {"depth": 7}, MLP])
def test_a_student_that_claims_a_huge_network_takes_no_memory_for_it(saved, net):
    folder = saved("student")
    about = json.loads((folder / "artifact.json").read_text())
    rewrite(folder, net=net if "kind" in net else {**about["net"], **net}, size=512)
    with pytest.raises(DamagedFile, match="does not describe a student"):
        load(folder)


WRONG = {
    "distilled-set": [
        {"images": torch.zeros(6, 1, 8, 8, dtype=torch.int64)},
        {"images": torch.zeros(6, 1, 9, 9)},
        {"labels": torch.full((6,), 3)},
        {"labels": torch.full((6,), -1)},
        {"labels": torch.zeros(6, 2)},
        {"labels": torch.zeros(6, dtype=torch.uint8)},
    ],
    "selection": [{"indices": torch.zeros(4)}, {"indices": torch.tensor([-1])}, {"weights": torch.zeros(3)}],
    "student": [{"head.bias": torch.zeros(3, dtype=torch.float64)}, {"head.bias": torch.zeros(4)}],
    "trajectories": [{"expert.0001": torch.zeros(2, 5)}, {"expert.0001": torch.zeros(3, 5, dtype=torch.int64)}],
}


@pytest.mark.parametrize(("kind", "wrong"), [(kind, wrong) for kind, all in WRONG.items() for wrong in all])
def test_tensors_of_another_type_shape_or_range_are_refused(saved, kind, wrong):
    from attar.files import load_tensors, save_tensors

    folder = saved(kind)
    path = folder / "tensors.safetensors"
    save_tensors(path, {**load_tensors(path), **wrong})
    rewrite(folder)
    with pytest.raises(DamagedFile, match=f"does not describe a {kind}"):
        load(folder)


def test_what_is_no_plain_file_is_refused(saved):
    for name in ("artifact.json", "tensors.safetensors"):
        folder = saved("selection")
        (folder / name).unlink()
        (folder / name).mkdir()
        with pytest.raises(AttarError):
            load(folder)
        (folder / name).rmdir()
        os.mkfifo(folder / name)  # to read it would wait for ever
        with pytest.raises(AttarError):
            load(folder)
        shutil.rmtree(folder)


@pytest.mark.parametrize("name", ["checkpoints", "metrics.jsonl", ".lock", "artifact"])
def test_a_run_folder_whose_parts_lead_elsewhere_is_refused_and_nothing_there_is_touched(tmp_path, name):
    from attar.run import Plan, Run

    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious.json").write_text("{}")
    (tmp_path / "precious.txt").write_text("precious")
    target = tmp_path / "precious.txt" if name in {"metrics.jsonl", ".lock"} else outside
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(target)
    with pytest.raises(AttarError, match="is a link"), Run(tmp_path / "run", plan=Plan(), recipe="x"):
        pass
    assert (tmp_path / "precious.txt").read_text() == "precious"
    assert (outside / "precious.json").read_text() == "{}"


def test_saving_over_a_link_leaves_what_it_led_to(saved, tmp_path):
    whole = saved("selection")
    (tmp_path / "link").symlink_to(whole)
    before = (whole / "artifact.json").read_bytes()
    made = load(whole)
    made.indices = made.indices + 1
    with contextlib.suppress(AttarError):
        made.save(tmp_path / "link")
    assert (whole / "artifact.json").read_bytes() == before
    assert not list(tmp_path.glob(".*.tmp"))


# ------------------------------------------------------------------ what a run folder's reader and a recipe's meet


@few
@given(
    recipe=JSON,
    run=JSON,
    evaluation=JSON,
    lines=st.lists(JSON | st.dictionaries(st.sampled_from(["step", "x"]), ODD), max_size=3),
)
def test_a_run_folder_of_any_json_is_read_or_refused(tmp_path, recipe, run, evaluation, lines):
    for name, value in (("recipe", recipe), ("run", run), ("evaluation", evaluation)):
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    with contextlib.suppress(AttarError):
        read_folder(tmp_path)


@pytest.mark.parametrize("text", ["[" * 200_000, "9" * 5000, '{"step": 1' + "0" * 400 + ', "x": 1}'])
def test_a_run_folder_of_json_that_is_too_deep_or_too_long_is_read_or_refused(tmp_path, text):
    for name in ("recipe.json", "run.json", "metrics.jsonl"):
        (tmp_path / name).write_text(text)
    with contextlib.suppress(AttarError):
        read_folder(tmp_path)
    (tmp_path / "recipe.json").write_text('{"id": "dm"}')
    assert read_folder(tmp_path).problems or text.startswith('{"step"')


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@few
@given(
    text=st.text(max_size=40)
    | st.sampled_from(["[" * 5000, "!!python/object/apply:os.system [x]", BOMB, f"run: dm\n{BOMB}", "run: dm\n1: 2"])
)
def test_any_text_is_a_recipe_or_refused(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    with contextlib.suppress(RecipeError):
        for entry in recipes.read(path).values():
            recipes.make(entry.pop("run"), recipes.flatten(entry, {}))


@few
@given(key=st.sampled_from([*recipes.RESERVED, "ipc", "steps", "net", "net.width", "net.kind", "data"]), value=JSON)
def test_any_value_of_a_setting_makes_a_recipe_or_is_refused(key, value):
    with contextlib.suppress(AttarError):
        recipes.make("dm", {"data": "digits", key: value})
