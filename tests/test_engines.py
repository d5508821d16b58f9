"""Engines: rows stand alone, precisions agree, the choice is honest, and what cannot run says so in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from specvit_training import torch_engine

import specvit_deploy as sv
from specvit_deploy import engines
from specvit_deploy.bundle import Bundle, file_sha256
from specvit_deploy.cli import main
from specvit_deploy.emulator import default_emulator
from specvit_deploy.engines import cuda, openvino
from specvit_deploy.engines import onnxruntime as ort_engine
from specvit_deploy.engines.batches import in_batches
from specvit_deploy.fisher import Nuisances, in_model_units, spectrum_information
from specvit_deploy.graph_file import OUTPUTS
from specvit_deploy.labels import LOG_G
from specvit_deploy.quality import Quality
from specvit_deploy.recipe import Recipe
from specvit_deploy.scenario import SURVEY

Arrays = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]
BATCH = 16
needs_bf16 = pytest.mark.skipif(openvino.why_not("bf16") is not None, reason=str(openvino.why_not("bf16")))
needs_openvino = pytest.mark.skipif(openvino.why_not("fp32") is not None, reason=str(openvino.why_not("fp32")))


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default graph, the ends of its trunk named whether or not they are already."""
    model = onnx.load(sv.load_bundle().graph())
    norms = {n.input[1]: n.input[0] for n in model.graph.node if n.op_type == "LayerNormalization"}
    (first,) = (x for weight, x in norms.items() if weight.endswith("layers.0.norm1.weight"))
    (last,) = (x for weight, x in norms.items() if weight.endswith(".norm.weight") and "layers" not in weight)
    names = {first: "trunk_in", last: "trunk_out"}
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    del model.graph.value_info[:]
    path = tmp_path_factory.mktemp("graph") / "named.onnx"
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def make_bundle(graph: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Bundle]:
    """Bundles around that graph with any parity report."""

    def make(**times: float) -> Bundle:
        path = tmp_path_factory.mktemp("bundle")
        (path / "graphs").mkdir()
        (path / "graphs" / "fp32.onnx").write_bytes(graph.read_bytes())
        weights = sv.load_bundle().path / "weights.safetensors"
        (path / "weights.safetensors").write_bytes(weights.read_bytes())
        files = {name: file_sha256(path / name) for name in ("graphs/fp32.onnx", "weights.safetensors")}
        fp32 = {"file": "graphs/fp32.onnx", "sha256": files["graphs/fp32.onnx"], "precision": "float32", "opset": 23}
        report = {}
        for pair, ms in times.items():
            engine, precision = pair.split("/")
            report[pair] = {"engine": engine, "precision": precision, "ms_per_spectrum": ms}
        changes = {"graphs": {"fp32": {**fp32, "trunk": True}}, "files": files, "parity": report, "name": "named"}
        (path / "bundle.json").write_text(json.dumps(sv.load_bundle().manifest | changes))
        return sv.load_bundle(path)

    return make


@pytest.fixture(scope="module")
def bundle(make_bundle: Callable[..., Bundle]) -> Bundle:
    return make_bundle(**{"onnxruntime/fp32": 1.2, "openvino/fp32": 1.0, "openvino/bf16": 0.8})


@pytest.fixture(scope="module")
def cases() -> dict[str, Arrays]:
    ((_, flux, error),) = Recipe("survey", (20.5, 22.5), 40, 8_101).blocks()
    rng = np.random.default_rng(3)
    lost, lost_error = flux[:12].copy(), error[:12].copy()
    lost_error[rng.random(lost_error.shape) < np.linspace(0.1, 0.95, 12)[:, None]] = np.inf
    lost[:4, :2048] = np.nan
    odd, odd_error = flux[:10].copy(), error[:10].copy()
    odd[0], odd_error[1], odd[2] = np.nan, 0.0, -odd[2]
    odd[3] *= np.float32(1e-20)
    odd_error[3] *= np.float32(1e-20)
    odd[4] *= np.float32(1e6)
    odd_error[4] *= np.float32(1e6)
    odd[5, ::500] = 1e4
    odd[6] = odd_error[6] * rng.standard_normal(4096, dtype=np.float32)
    return {"ordinary": (flux, error), "masked": (lost, lost_error), "odd": (odd, odd_error)}


@dataclass
class Loaded:
    """An engine on the test graph, loaded when it is first used."""

    graph: Path
    bundle: Bundle

    def __call__(self, pair: str) -> engines.Engine:
        if pair not in self.__dict__:
            name, precision = pair.split("/")
            module = {"torch": torch_engine}.get(name) or engines.engine_module(name)
            if reason := module.why_not(precision):
                pytest.skip(reason)
            self.__dict__[pair] = module.load(self.bundle, precision, 1, BATCH)
        return self.__dict__[pair]  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def loaded(graph: Path, bundle: Bundle) -> Loaded:
    return Loaded(graph, bundle)


PAIRS = ["onnxruntime/fp32", "openvino/fp32", "openvino/bf16", "torch/fp32"]


# ---- batches


@pytest.mark.parametrize(("n", "batch"), [(0, 4), (1, 4), (4, 4), (5, 4), (11, 3), (3, 1)])
def test_every_batch_has_one_size_and_nothing_is_lost(n: int, batch: int) -> None:
    rng = np.random.default_rng(n)
    flux, error = rng.random((2, n, 6)).astype(">f8")  # neither float32 nor native
    before = flux.copy(), error.copy()
    buffer, sizes = np.empty((batch, 6), np.float32), []

    def once(f: Any, e: Any) -> dict[str, Any]:
        sizes.append((f.shape, e.shape, f.dtype, f.flags.c_contiguous))
        np.add(f, e, out=buffer)  # the same buffer again and again
        return {"sum": buffer, "first": f[:, 0].astype(np.int32)}

    out = in_batches(once, flux, error, batch)
    np.testing.assert_array_equal(out["sum"], flux.astype("f4") + error.astype("f4"))
    assert out["first"].shape == (n,) and out["first"].dtype == np.int32
    assert set(sizes) == {((batch, 6), (batch, 6), np.dtype("f4"), True)} and len(sizes) == max(1, -(-n // batch))
    np.testing.assert_array_equal(flux, before[0])
    np.testing.assert_array_equal(error, before[1])


# ---- every engine


@pytest.mark.parametrize("pair", PAIRS)
def test_a_row_does_not_see_the_others(pair: str, loaded: Loaded, cases: dict[str, Arrays]) -> None:
    engine = loaded(pair)
    flux, error = (x[:BATCH].copy() for x in cases["ordinary"])
    reference = engine.run(flux, error)
    flux[3], flux[8], error[5] = np.nan, 1e6, 0.0
    got, kept = engine.run(flux, error), [i for i in range(BATCH) if i not in (3, 5, 8)]
    assert np.isnan(got["labels"][[3, 5]]).all() and not np.array_equal(got["labels"][8], reference["labels"][8])
    for name in OUTPUTS:
        np.testing.assert_array_equal(got[name][kept], reference[name][kept], err_msg=name)


@pytest.mark.parametrize("pair", PAIRS)
def test_a_short_last_batch_gives_what_a_full_one_gives(pair: str, loaded: Loaded, cases: dict[str, Arrays]) -> None:
    engine = loaded(pair)
    flux, error = cases["ordinary"]
    whole, part = engine.run(flux[:32], error[:32]), engine.run(flux[:21], error[:21])
    assert set(part) == set(OUTPUTS)
    for name, (dtype, shape) in OUTPUTS.items():
        assert part[name].shape == (21, *shape) and part[name].dtype == dtype, name
        np.testing.assert_array_equal(part[name], whole[name][:21], err_msg=name)


@pytest.mark.parametrize("pair", PAIRS[1:])
@pytest.mark.parametrize("case", ["ordinary", "masked", "odd"])
def test_engines_agree(pair: str, case: str, loaded: Loaded, cases: dict[str, Arrays]) -> None:
    found, reference = (loaded(p).run(*cases[case]) for p in (pair, PAIRS[0]))
    np.testing.assert_array_equal(found["n_good"], reference["n_good"])
    log_g, err = found["labels"][:, LOG_G], reference["log_g_err"]
    difference = np.abs(log_g - reference["labels"][:, LOG_G])
    np.testing.assert_array_equal(np.isnan(log_g), np.isnan(err))
    usable = np.isfinite(err)
    assert usable.sum() >= len(err) - 2
    if pair.endswith("fp32"):
        assert difference[usable].max() <= 1e-4
        assert np.abs(found["log_g_err"] - err)[usable].max() <= 1e-4
        np.testing.assert_allclose(found["log_g_crlb"], reference["log_g_crlb"], rtol=1e-3)
    else:
        fraction = (difference / err)[usable]
        assert 0 < np.sqrt(np.mean(fraction**2)) <= 0.05 and fraction.max() <= 0.25


def test_engines_say_what_they_are(loaded: Loaded) -> None:
    for pair in PAIRS:
        engine = loaded(pair)
        assert f"{engine.name}/{engine.precision}" == pair and engine.batch == BATCH and engine.fell_back is False
        assert engine.name in engine.description


# ---- OpenVINO's bfloat16


@needs_bf16
def test_bfloat16_reaches_the_layers_alone(graph: Path, cases: dict[str, Arrays]) -> None:

    core = openvino.the_core()
    parts = openvino.cut(openvino.read_model(core, graph, BATCH), graph)
    for part, hint, expected in zip(parts, ("f32", "bf16", "f32"), (False, True, False), strict=True):
        compiled = openvino.compile_part(core, part, hint, 1).get_compiled_model()
        types = {str(node.get_rt_info()["runtimePrecision"].value) for node in compiled.get_runtime_model().get_ops()}
        assert ("bf16" in types) is expected, (part.get_friendly_name(), types)
        assert "f16" not in types


@needs_bf16
def test_after_the_trunk_all_is_float32(graph: Path, cases: dict[str, Arrays]) -> None:
    """Given the trunk's result in float32, the parts of the bfloat16 engine give what the float32 engine gives."""
    engine = openvino.OpenVinoEngine(graph, "bf16", 1, BATCH)
    whole = openvino.OpenVinoEngine(graph, "fp32", 1, BATCH)
    core = openvino.the_core()
    _, trunk, _ = openvino.cut(openvino.read_model(core, graph, BATCH), graph)
    exact = openvino.compile_part(core, trunk, "f32", 1)
    exact.set_input_tensor(engine.before.get_output_tensor())
    engine.last.set_tensor(openvino.TRUNK_OUT, exact.get_output_tensor())
    engine.trunk = exact
    flux, error = cases["ordinary"]
    got, expected = engine.run(flux, error), whole.run(flux, error)
    for name in OUTPUTS:
        atol = 0.0 if "crlb" in name else 1e-5  # M_H may be near 0
        # rounding of the estimate moves the bound by 1e-5; a product in bfloat16 would by 4e-3
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-4, atol=atol, err_msg=name)


def worst_bound(found: dict[str, Any], flux: Any, error: Any) -> float:
    """Largest relative difference of log_g_crlb from the bound at the same labels by dense algebra in float64."""
    emulator, labels = default_emulator(), found["labels"].astype(np.float64)
    _, ivar = in_model_units(flux, error, emulator.flux(labels))
    exact = spectrum_information(emulator, labels, ivar, nuisances=Nuisances.of(SURVEY)).sigma("log_g")
    finite = np.isfinite(found["log_g_crlb"])
    assert finite.mean() > 0.8
    return float(np.abs(found["log_g_crlb"] / exact - 1)[finite].max())


@pytest.mark.parametrize("pair", PAIRS)
def test_the_bound_is_that_of_double_precision(pair: str, loaded: Loaded, cases: dict[str, Arrays]) -> None:
    """At the engine's own labels, whatever their precision: nothing of the Fisher matrix was in bfloat16 or TF32."""
    assert worst_bound(loaded(pair).run(*cases["ordinary"]), *cases["ordinary"]) < 3e-3


@needs_bf16
def test_the_bound_would_not_survive_bfloat16(graph: Path, cases: dict[str, Arrays]) -> None:

    core = openvino.the_core()
    whole = openvino.compile_part(core, openvino.read_model(core, graph, 40), "bf16", 1)
    flux, error = cases["ordinary"]
    whole.infer({"flux": flux, "error": error})
    found = {name: whole.get_tensor(name).data for name in OUTPUTS}
    found["log_g_crlb"] = np.where(np.isfinite(found["log_g_crlb"]), found["log_g_crlb"], 0.0)
    assert worst_bound(found, flux, error) > 3e-2


@needs_openvino
def test_openvino_sends_word_to_nobody() -> None:
    """Its import loads a module that reports each import over the network, if that module is there; ours does not."""
    look = "import sys; print('openvino_telemetry' in sys.modules)"
    ours = "from specvit_deploy.engines.openvino import the_core; the_core()"
    said = subprocess.run([sys.executable, "-c", f"{ours}; {look}"], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "False"


@needs_openvino
@pytest.mark.parametrize(("version", "usable"), [("2025.4.1-1", False), ("2026.2.1-2-x", False), ("2026.3.0-3", True)])
def test_versions_that_misread_attention_are_not_used(
    version: str, usable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino.library(), "__version__", version)
    reason = openvino.why_not("fp32")
    assert reason is None if usable else "pip install 'openvino>=2026.3'" in str(reason)


@needs_openvino
def test_a_graph_without_named_ends_is_not_cut(graph: Path, tmp_path: Path) -> None:
    model = onnx.load(graph)
    for node in model.graph.node:
        node.input[:] = [name.replace("trunk_out", "x") for name in node.input]
        node.output[:] = [name.replace("trunk_out", "x") for name in node.output]
    onnx.save(model, tmp_path / "x.onnx")
    with pytest.raises(sv.SpecVitError, match="has no tensors trunk_in and trunk_out"):
        openvino.OpenVinoEngine(tmp_path / "x.onnx", "bf16", 1, 4)


# ---- the choice


def unusable(monkeypatch: pytest.MonkeyPatch, *pairs: str) -> list[str]:
    """Make every engine say that it runs, but for `pairs`; gives the list of pairs that were looked at."""
    asked: list[str] = []
    for name in engines.ENGINES:
        module = engines.engine_module(name)

        def why_not(precision: str, name: str = name) -> str | None:
            asked.append(f"{name}/{precision}")
            return "it is broken" if asked[-1] in pairs else None

        double = SimpleNamespace(EXTRA=module.EXTRA, FORMS=module.FORMS, why_not=why_not, load=module.load)
        monkeypatch.setitem(engines.ENGINES, name, f"{__name__}:{name}")
        monkeypatch.setitem(globals(), name, double)
    return asked


REPORT = {"onnxruntime/fp32": 1.2, "openvino/fp32": 1.0, "openvino/bf16": 0.8, "torch/fp32": 0.1, "cuda/fp32": 0.05}


@pytest.mark.parametrize(
    ("broken", "engine", "precision", "expected"),
    [
        ([], "auto", "auto", "cuda/fp32"),
        (["cuda/fp32"], "auto", "auto", "openvino/bf16"),
        (["cuda/fp32", "openvino/bf16"], "auto", "auto", "openvino/fp32"),
        (["cuda/fp32", "openvino/bf16", "openvino/fp32"], "auto", "auto", "onnxruntime/fp32"),
        (["cuda/fp32"], "auto", "fp32", "openvino/fp32"),
        ([], "auto", "bf16", "openvino/bf16"),
        ([], "openvino", "auto", "openvino/bf16"),
        (["openvino/bf16"], "openvino", "auto", "openvino/fp32"),
        ([], "openvino", "fp32", "openvino/fp32"),
        ([], "onnxruntime", "auto", "onnxruntime/fp32"),
    ],
)
def test_auto_takes_the_fastest_verified_pair_that_runs_here(
    broken: list[str], engine: str, precision: str, expected: str, make_bundle: Callable[..., Bundle],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    made = make_bundle(**REPORT)
    asked = unusable(monkeypatch, *broken)
    chosen = engines.choose(made, engine, precision)
    assert chosen.pair == expected and chosen.milliseconds == REPORT[expected]
    assert asked[-1] == expected  # slower ones were left alone


def test_auto_never_takes_what_was_not_verified(
    make_bundle: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_bundle(**{"cuda/fp16": 0.1, "onnxruntime/fp32": 1.0})
    unusable(monkeypatch)  # cuda/fp16 would run, but the bundle has no such graph
    assert engines.choose(made).pair == "onnxruntime/fp32"
    with pytest.raises(sv.SpecVitError, match="verified with no engine at int8; name an engine"):
        engines.choose(made, precision="int8")
    assert engines.choose(made, "openvino").pair == "openvino/fp32"  # asked for, never verified
    with pytest.warns(UserWarning, match="never verified with openvino/fp32"):
        engines.load_engine(made, "openvino")


def test_an_older_report_speaks_of_onnx_runtime_alone(
    make_bundle: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_bundle()
    made.manifest["parity"] = {"fp32": {"largest": {}}}
    unusable(monkeypatch)
    assert engines.choose(made).pair == "onnxruntime/fp32"
    assert set(engines.verified(made)) == {("onnxruntime", "fp32")}


def test_every_engine_is_listed_with_its_reason(bundle: Bundle) -> None:
    listed = {choice.pair: choice for choice in engines.available(bundle)}
    for name in engines.ENGINES:
        assert {p for p in listed if p.startswith(f"{name}/")} == {f"{name}/{p}" for p in engine_forms(name)}
    assert listed["onnxruntime/fp32"].reason is None and listed["onnxruntime/fp32"].milliseconds == 1.2
    assert listed["onnxruntime/int8"].reason == "the bundle has no int8 graph"
    assert listed["onnxruntime/int8"].milliseconds is None
    assert all(c.form == engine_forms(c.engine)[c.precision] for c in listed.values() if c.engine in engines.ENGINES)
    machine = {choice.pair: choice.reason for choice in engines.available()}
    assert machine["onnxruntime/int8"] is None  # nothing but the form was in its way


def engine_forms(name: str) -> dict[str, str]:
    return engines.engine_module(name).FORMS


def test_a_precision_needs_named_layers(make_bundle: Callable[..., Bundle]) -> None:
    made = make_bundle()
    assert engines.lacking(made, "fp32", "bf16") is None
    del made.manifest["graphs"]["fp32"]["trunk"]
    assert engines.lacking(made, "fp32", "fp32") is None
    assert "names no transformer layers" in str(engines.lacking(made, "fp32", "bf16"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "abacus"}, "no engine abacus; give one of onnxruntime, cuda, openvino"),
        ({"precision": "fp7"}, "no engine has precision fp7; give one of fp32, fp16"),
        ({"engine": "onnxruntime", "precision": "bf16"}, "onnxruntime has no precision bf16; give one of fp32, int8"),
        ({"batch": 0}, "batch 0 is impossible; give at least 1"),
    ],
)
def test_what_does_not_exist_is_refused_even_with_a_fallback(
    options: dict[str, Any], message: str, bundle: Bundle
) -> None:
    for allowed in (False, True):
        with pytest.raises(sv.SpecVitError, match=message):
            engines.load_engine(bundle, **options, allow_fallback=allowed)


def test_entry_points_add_engines_but_never_to_auto(
    make_bundle: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = SimpleNamespace(name="torch", value="specvit_training.torch_engine")
    thief = SimpleNamespace(name="onnxruntime", value="nowhere")
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [entry, thief])
    made = make_bundle(**{"torch/fp32": 0.1, "onnxruntime/fp32": 1.0})
    assert [*engines.engine_places()] == [*engines.ENGINES, "torch"]
    assert engines.engine_module("onnxruntime") is ort_engine
    assert engines.choose(made).pair == "onnxruntime/fp32"
    assert engines.load_engine(made, "torch").name == "torch"


def test_choosing_imports_no_more_than_it_must(bundle: Bundle) -> None:
    code = (
        "import sys, specvit_deploy.engines as e, specvit_deploy.bundle as b\n"
        f"bundle = b.load_bundle({str(bundle.path)!r})\n"
        "heavy = {'torch', 'openvino', 'onnxruntime', 'tensorrt', 'tensorrt_rtx', 'onnx'}\n"
        "print(e.choose(bundle, 'onnxruntime', 'fp32').pair, heavy & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "onnxruntime/fp32 set()", result.stderr


# ---- what cannot run


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "cuda_device", lambda: None)


def test_an_engine_without_its_device_is_one_line(no_gpu: None, catalog: Path, tmp_path: Path) -> None:
    arguments = ["predict", str(catalog), "-o", str(tmp_path / "out.h5"), "--engine", "cuda"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2 and list(tmp_path.iterdir()) == []
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("Error: ") and "no CUDA device" in line and line.endswith("--allow-fallback")


@pytest.mark.filterwarnings("always::UserWarning")
def test_a_fallback_is_said_and_marked_on_every_row(no_gpu: None, catalog: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    arguments = ["predict", str(catalog), "-o", str(out), "--engine", "cuda", "--allow-fallback"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "no CUDA device" in result.stderr and "falling back to onnxruntime fp32" in result.stderr
    assert "engine onnxruntime fp32" in result.stdout
    with h5py.File(out) as file:
        assert (file["quality"][:] & int(Quality.ENGINE_FALLBACK)).all()
        assert (file.attrs["engine"], file.attrs["precision"]) == ("onnxruntime", "fp32")
        plain = sv.predict(catalog, engine="onnxruntime", precision="fp32")
        assert not (plain["quality"] & int(Quality.ENGINE_FALLBACK)).any()
        np.testing.assert_array_equal(file["log_g"][:], plain["log_g"])


def test_a_load_that_fails_may_fall_back_too(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise sv.SpecVitError("out of memory; use a smaller batch")

    monkeypatch.setattr(openvino, "why_not", lambda precision: None)
    monkeypatch.setattr(openvino, "load", refuse)
    with pytest.raises(sv.SpecVitError, match="out of memory"):
        engines.load_engine(bundle, "openvino")
    with pytest.warns(UserWarning, match="out of memory"):
        engine = engines.load_engine(bundle, "openvino", allow_fallback=True)
    assert engine.fell_back and engine.name == "onnxruntime"
    assert not engines.load_engine(bundle, "onnxruntime").fell_back


def test_no_engine_at_all_names_every_reason(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    unusable(monkeypatch, "onnxruntime/fp32", "openvino/fp32", "openvino/bf16")
    with pytest.raises(sv.SpecVitError, match=r"openvino/bf16: it is broken; .*onnxruntime/fp32: it is broken"):
        engines.choose(bundle)


@pytest.mark.parametrize("load", [ort_engine.OnnxRuntimeEngine, openvino.OpenVinoEngine])
@pytest.mark.parametrize(("change", "message"), [("flux", "inputs flow"), ("n_good", "outputs .*flow"), ("", "annot")])
def test_a_foreign_graph_is_refused(
    load: Callable[[Path], engines.Engine], change: str, message: str, graph: Path, tmp_path: Path
) -> None:
    if load is openvino.OpenVinoEngine and openvino.why_not("fp32"):
        pytest.skip("no openvino")
    path = tmp_path / "x.onnx"
    path.write_bytes(b"nonsense")
    if change:
        model = onnx.load(graph)
        for value in (*model.graph.input, *model.graph.output):
            value.name = "flow" if value.name == change else value.name
        for node in model.graph.node:
            node.input[:] = ["flow" if name == change else name for name in node.input]
            node.output[:] = ["flow" if name == change else name for name in node.output]
        onnx.save(model, path)
    with pytest.raises(sv.SpecVitError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_a_session_on_another_provider_is_refused(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime as ort

    class Silent:
        def __init__(self, *_: Any, **settings: Any) -> None:
            assert settings["enable_fallback"] == 0

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(ort, "InferenceSession", Silent)
    with pytest.raises(sv.SpecVitError, match="came up on CPUExecutionProvider instead of CUDAExecutionProvider"):
        ort_engine.open_session(graph, ort.SessionOptions(), cuda.PROVIDER)


# ---- ONNX Runtime on CUDA, as far as it goes without a card


def test_cuda_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime as ort

    monkeypatch.setattr(cuda, "cuda_device", lambda: None)
    monkeypatch.setattr(ort, "get_available_providers", lambda: [cuda.PROVIDER, "CPUExecutionProvider"])
    assert cuda.why_not("fp32") == "no CUDA device"  # compiled in is not usable
    monkeypatch.setattr(cuda, "cuda_device", lambda: ("Tesla T4", (7, 5)))
    monkeypatch.setattr(ort, "preload_dlls", lambda: print("noise"), raising=False)
    assert cuda.why_not("bf16") == "Tesla T4 has no bfloat16"

    def broken(*_: Any) -> None:
        raise RuntimeError("libcublasLt.so.13:\n cannot open")

    monkeypatch.setattr(ort.OrtValue, "ortvalue_from_numpy", broken)
    assert cuda.why_not("fp16") == "onnxruntime cannot use Tesla T4 (libcublasLt.so.13: cannot open)"
    monkeypatch.setattr(ort.OrtValue, "ortvalue_from_numpy", lambda *_: None)
    assert cuda.why_not("fp16") is None
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert "this onnxruntime has no CUDA" in str(cuda.why_not("fp32"))


def test_cuda_keeps_float32_true() -> None:
    assert cuda.provider_settings(True) == {"device_id": "0", "use_tf32": "0", "enable_cuda_graph": "1"}
    assert cuda.provider_settings(False)["enable_cuda_graph"] == "0"


def test_a_fixed_batch_leaves_no_arithmetic_on_shapes_and_strays_are_seen(graph: Path) -> None:
    session = ort_engine.open_session(graph, cuda.session_options(1, 8), "CPUExecutionProvider")
    assert all(value.shape[0] == 8 for value in (*session.get_inputs(), *session.get_outputs()))
    operators = {n.op_type for part in session.get_provider_graph_assignment_info() for n in part.get_nodes()}
    assert "Attention" in operators and "Shape" not in operators
    cuda.check_placement(session, graph, "CPUExecutionProvider")
    with pytest.raises(sv.SpecVitError, match="outside of CUDAExecutionProvider; choose another precision"):
        cuda.check_placement(session, graph)


def test_bound_buffers_give_what_a_plain_run_gives(
    graph: Path, loaded: Loaded, cases: dict[str, Arrays], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CUDA engine with its provider, settings and buffers turned to the CPU."""
    real, open_session = cuda.buffers, cuda.open_session
    monkeypatch.setattr(cuda, "buffers", lambda signature, batch: real(signature, batch, "cpu"))
    monkeypatch.setattr(cuda, "open_session", lambda g, options, *_: open_session(g, options, "CPUExecutionProvider"))
    monkeypatch.setattr(cuda, "check_placement", lambda *_: None)
    engine = cuda.CudaEngine(graph, "fp32", 1, BATCH)
    got, expected = (e.run(*cases["masked"]) for e in (engine, loaded("onnxruntime/fp32")))
    for name in OUTPUTS:
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-5, atol=1e-5, err_msg=name)
    assert engine.run(*cases["ordinary"])["labels"].shape == (40, 5)


def test_a_card_that_fails_is_one_line_and_a_cuda_graph_is_optional(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, open_session, recorded = cuda.buffers, cuda.open_session, []

    def on_cpu(graph: Path, options: Any, provider: str, settings: dict[str, str]) -> Any:
        recorded.append(settings["enable_cuda_graph"])
        return open_session(graph, options, "CPUExecutionProvider")

    def fail(self: cuda.CudaEngine, *_: Any) -> dict[str, Any]:
        if "no CUDA graph" in self.description and works:
            return {}
        raise RuntimeError("CUDA failure 2:\n out of memory")

    monkeypatch.setattr(cuda, "buffers", lambda signature, batch: real(signature, batch, "cpu"))
    monkeypatch.setattr(cuda, "open_session", on_cpu)
    monkeypatch.setattr(cuda, "check_placement", lambda *_: None)
    monkeypatch.setattr(cuda.CudaEngine, "_once", fail)
    works = True
    assert "no CUDA graph" in cuda.load(bundle, "fp32", 1, BATCH).description and recorded == ["1", "0"]
    works = False
    with pytest.raises(sv.SpecVitError, match=r"CUDA failure 2: out of memory\); give a smaller batch"):
        cuda.load(bundle, "fp32", 1, BATCH)


@pytest.mark.gpu
@pytest.mark.parametrize("cuda_graph", [True, False])
def test_cuda_agrees_with_the_cpu(
    cuda_graph: bool, graph: Path, loaded: Loaded, cases: dict[str, Arrays]
) -> None:  # pragma: no cover
    if reason := cuda.why_not("fp32"):
        pytest.skip(reason)
    engine = cuda.CudaEngine(graph, "fp32", 1, BATCH, cuda_graph)
    for flux, error in cases.values():
        got, expected = (e.run(flux, error) for e in (engine, loaded("onnxruntime/fp32")))
        np.testing.assert_allclose(got["labels"][:, LOG_G], expected["labels"][:, LOG_G], atol=1e-4)
        np.testing.assert_allclose(got["log_g_crlb"], expected["log_g_crlb"], rtol=1e-3)
    assert worst_bound(engine.run(*cases["ordinary"]), *cases["ordinary"]) < 3e-3


# ---- what ships


def test_every_verified_engine_of_the_default_bundle_that_runs_here_agrees(cases: dict[str, Arrays]) -> None:
    shipped = sv.load_bundle()
    flux, error = cases["ordinary"]
    reference = ort_engine.load(shipped, "fp32", 1, None).run(flux, error)
    ran = []
    for name, precision in engines.verified(shipped):
        if name not in engines.ENGINES or engines.choice(name, precision, shipped).reason:
            continue
        found = engines.load_engine(shipped, name, precision).run(flux, error)
        fraction = np.abs(found["labels"] - reference["labels"])[:, LOG_G] / reference["log_g_err"]
        assert fraction.max() <= 0.25 and np.sqrt(np.mean(fraction**2)) <= 0.05, (name, precision)
        assert worst_bound(found, flux, error) < 3e-3, (name, precision)
        ran.append((name, precision))
    assert ("onnxruntime", "fp32") in ran


def test_the_record_of_a_result_names_what_ran(catalog: Path, tmp_path: Path) -> None:
    with h5py.File(sv.predict(catalog, tmp_path / "out.h5", engine="onnxruntime", batch=7)) as file:
        assert file.attrs["engine"] == "onnxruntime" and file.attrs["precision"] in ("fp32", "int8")
        assert "onnxruntime" in file.attrs["engine_description"]


FREED = """
import faulthandler, gc, signal, subprocess
from specvit_deploy.bundle import load_bundle
from specvit_deploy.engines import load_engine
faulthandler.enable()
ended = []
signal.signal(signal.SIGCHLD, lambda *_: ended.append(1))
engines = [load_engine(load_bundle(), "openvino", "fp32") for _ in range(2)]
while engines:
    engines.pop(0)
    gc.collect()
subprocess.run(["true"])
print(len(ended) > 0)
"""


def test_engines_freed_in_any_order_leave_a_stack_for_signals() -> None:
    """Two OpenVINO cores of one process, freed in the order of their making, end it at the next signal."""
    pytest.importorskip("openvino")
    assert subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True).stdout == "True\n"
