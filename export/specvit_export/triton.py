"""A model repository for NVIDIA's Triton server: the graph as it is, beside a configuration read from the graph."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import click

from specvit_deploy.atomic import check_outputs
from specvit_deploy.bundle import DEFAULT, Bundle, file_sha256, load_bundle
from specvit_deploy.errors import SpecVitError
from specvit_deploy.graph_file import read_graph

TYPES = {"float32": "TYPE_FP32", "int32": "TYPE_INT32"}
QUEUE_MICROSECONDS = 2000
"""How long a request may wait for others."""
PREFERRED = {"cpu": (8, 16), "gpu": (32, 64, 128, 256)}
"""Batches that run well: small ones stay in the cache of a CPU core."""

HEAD = """\
# {name}, form {form}, scenario {scenario}
# bundle SHA-256 {bundle}
# graph  SHA-256 {graph}
"""
BATCHING = """\
# A row's result does not depend on the other rows of its batch (no batch statistics, no scale shared by rows), so
# that requests may be put together; the last bits of a number may follow the size of the batch.
dynamic_batching {{
  preferred_batch_size: [ {sizes} ]
  max_queue_delay_microseconds: {delay}
}}
"""
CPU = """\
# One thread an instance is the fastest per core: raise the count to the number of cores.
instance_group [
  {
    count: 1
    kind: KIND_CPU
  }
]
parameters {
  key: "intra_op_thread_count"
  value: { string_value: "1" }
}
"""
GPU = """\
instance_group [
  {
    count: 1
    kind: KIND_GPU
  }
]
# The Fisher matrix behind log_g_crlb needs true float32: TF32 is switched off. The "tensorrt" accelerator is left out
# on purpose: it would take over the whole graph, and by default multiplies float32 matrices in TF32 or, with
# precision_mode FP16, in half precision, the Fisher matrix among them.
optimization {
  execution_accelerators {
    gpu_execution_accelerator [
      {
        name: "cuda"
        parameters { key: "use_tf32" value: "0" }
      }
    ]
  }
}
"""


def triton_repository(
    bundle: Bundle, output: Path, form: str = "fp32", max_batch: int = 64, device: str = "cpu"
) -> Path:
    """Write a Triton model repository, whole or not at all.

    Parameters
    ----------
    bundle : Bundle
        Its name becomes that of the model.
    output : Path
        Folder to make: OUTPUT/NAME/config.pbtxt and OUTPUT/NAME/1/model.onnx; give OUTPUT to `--model-repository`.
    form : str
        Graph of the bundle to serve.
    max_batch : int
        Largest number of spectra that the server puts together.
    device : {"cpu", "gpu"}
        Where its one instance runs.

    Returns
    -------
    Path
        `output`.

    Raises
    ------
    SpecVitError
        If the output exists, the bundle has no such form, the graph does not fulfil the contract, or the device
        cannot run the form.

    References
    ----------
    Triton's model configuration: github.com/triton-inference-server/server, docs/user_guide/model_configuration.md.
    """
    if device not in PREFERRED:
        raise SpecVitError(f"no device '{device}'; choose cpu or gpu")
    if not 1 <= max_batch <= 4096:
        raise SpecVitError(f"a largest batch of {max_batch} is impossible; give 1 to 4096")
    if not re.fullmatch(r"\w[\w.-]*", bundle.name):
        raise SpecVitError(f"a model cannot be called '{bundle.name}'; export the bundle again under a plain name")
    if output.exists():
        raise SpecVitError(f"{output} exists already; remove it or choose another place with -o")
    check_outputs([output])
    graph = bundle.graph(form)
    if form == "bf16" and device == "cpu":
        raise SpecVitError("ONNX Runtime has no bfloat16 on the CPU; choose --form fp32 or --device gpu")
    facts = read_graph(graph)
    if facts["contract"]:
        raise SpecVitError(f"{graph} does not fulfil the graph contract: {facts['contract'][0]}; export it again")
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        copy = temporary / bundle.name / "1" / "model.onnx"
        copy.parent.mkdir(parents=True)
        shutil.copyfile(graph, copy)
        if file_sha256(copy) != bundle.manifest["graphs"][form]["sha256"]:
            raise SpecVitError(f"the copy of {graph} differs from its hash; check the disk and try again")
        text = configuration(bundle, form, facts, max_batch, device)
        (temporary / bundle.name / "config.pbtxt").write_text(text, encoding="utf-8")
        temporary.replace(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return output


def configuration(bundle: Bundle, form: str, facts: dict[str, Any], max_batch: int, device: str) -> str:
    """Text of `config.pbtxt` for a graph described by `specvit_deploy.graph_file.read_graph`."""
    sizes = [size for size in PREFERRED[device] if size <= max_batch] or [max_batch]
    head = HEAD.format(
        name=bundle.name,
        form=form,
        scenario=bundle.scenario,
        bundle=bundle.sha256,
        graph=bundle.manifest["graphs"][form]["sha256"],
    )
    return "\n".join(
        [
            head + f'name: "{bundle.name}"\nbackend: "onnxruntime"\nmax_batch_size: {max_batch}',
            *(_tensor("input", value) for value in facts["inputs"]),
            *(_tensor("output", value) for value in facts["outputs"]),
            BATCHING.format(sizes=", ".join(map(str, sizes)), delay=QUEUE_MICROSECONDS)
            + (CPU if device == "cpu" else GPU),
        ]
    )


def _tensor(kind: str, value: dict[str, Any]) -> str:
    """One input or output; the server knows no rank 0, so that a number a row goes out as a vector of length one."""
    dims = value["shape"][1:]
    shape = f"dims: [ {', '.join(map(str, dims))} ]" if dims else "dims: [ 1 ]\n    reshape: { shape: [ ] }"
    lines = [f'    name: "{value["name"]}"', f"    data_type: {TYPES[value['type']]}", f"    {shape}"]
    return f"{kind} [\n  {{\n" + "\n".join(lines) + "\n  }\n]"


@click.command()
@click.argument("bundle", default=DEFAULT)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("triton"),
    show_default=True,
    help="Model repository to make.",
)
@click.option("--form", default="fp32", show_default=True, help="Graph of the bundle to serve.")
@click.option(
    "--max-batch",
    default=64,
    show_default=True,
    type=click.IntRange(1, 4096),
    help="Most spectra that the server puts together.",
)
@click.option(
    "--device", type=click.Choice(list(PREFERRED)), default="cpu", show_default=True, help="Where the model runs."
)
def triton(bundle: str, output: Path, form: str, max_batch: int, device: str) -> None:
    """Write a model repository for the Triton server: the graph of BUNDLE and its config.pbtxt."""
    path = triton_repository(load_bundle(bundle), output, form, max_batch, device)
    click.echo(f"wrote {path}; next: tritonserver --model-repository {path}")
