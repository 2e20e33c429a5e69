"""What the GPU benchmark found, as Markdown; and its latency tables, merged into calibration/."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gpu_subjects import subject_of, unit_of

from lrd_deploy.bench.latency_table import Conditions, LatencyTable
from lrd_deploy.ranks.forms import ranks_of
from lrd_deploy.records import KeepDense, LayerSignature

Line = dict[str, Any]
_STAIRCASES, _RANKS = 2, 12


def write_tables(sources: Iterable[Path], folder: Path) -> list[Path]:
    """Adds the measured latencies to a table per device and kind of work, and returns the files."""
    written = []
    for source in sources:
        if not source.exists():
            continue
        table = LatencyTable.read(source)
        for fingerprint, environment in table.environments.items():
            own = LatencyTable(
                {key: row for key, row in table.rows.items() if key[0].fingerprint == fingerprint},
                {fingerprint: environment},
            )
            on_gpu = any(conditions.execution.gpu is not None for conditions, _, _ in own.rows)
            device = environment.gpus[0].name if on_gpu and environment.gpus else environment.cpu
            name = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
            path = folder / f"{name}-{source.stem.removeprefix('latency-')}.jsonl"
            kept = LatencyTable.read(path) if path.exists() else LatencyTable()
            kept.merge(own)
            folder.mkdir(parents=True, exist_ok=True)
            written.append(kept.write(path))
    return written


def report(lines: Sequence[Line], latencies: Iterable[Path]) -> str:
    """Returns all tables, a machine after the other."""
    newest = {(str(sorted(line["row"].items())), line["machine"]): line for line in lines}
    machines = dict.fromkeys(line["machine"] for line in lines)
    tables = LatencyTable.read_all(path for path in latencies if path.exists())
    parts = []
    for machine in machines:
        own = [line for line in newest.values() if line["machine"] == machine]
        parts += [part for part in _of_machine(own, tables, machine) if part]
    return "\n\n".join(parts) or "nothing is measured yet"


def _of_machine(lines: Sequence[Line], tables: LatencyTable, machine: str) -> Iterator[str]:
    ceiling = next((line["result"] for line in _part(lines, "ceiling")), None)
    yield _heading(lines)
    yield _ceiling(ceiling)
    for line in _part(lines, "training"):
        yield _training(line, ceiling)
    yield _inference(_part(lines, "inference"))
    yield _engines(_part(lines, "engine"))
    yield _reasons([*_part(lines, "training"), *_part(lines, "inference")])
    yield _staircases(tables, machine)
    refused = [line for line in lines if "refusal" in line]
    if refused:
        yield "Refused:\n\n" + "\n".join(f"- {_title(line)}: {_cell(line['refusal'])}" for line in refused)


def _part(lines: Sequence[Line], part: str) -> list[Line]:
    return [line for line in lines if line["row"]["part"] == part and "result" in line]


def _heading(lines: Sequence[Line]) -> str:
    """Device, driver and versions; in small sizes it says so, for such figures tell nothing."""
    found = next((line for line in _part(lines, "machine")), None)
    if found is None:
        return ""
    result, packages = found["result"], found["result"]["environment"]["packages"]
    gpus = result["environment"]["gpus"]
    words = [result["device"], *([f"driver {gpus[0]['driver']}"] if gpus else [])]
    words += [f"CUDA {result['cuda']}", f"cuDNN {result['cudnn']}"] if result["cuda"] else []
    words += [f"PyTorch {packages.get('torch')}", f"transformers {packages.get('transformers')}"]
    runtime = packages.get("onnxruntime-gpu") or packages.get("onnxruntime")
    words.append(f"ONNX Runtime {runtime}")
    if result["why_not_onnxruntime"]:
        words.append(f"inference in PyTorch, for ONNX Runtime lacks: {_cell(result['why_not_onnxruntime'])}")
    small = "**Small sizes, to try the benchmark out: these figures tell nothing.** " if found["row"]["smoke"] else ""
    return f"## {result['device']}\n\n{small}{', '.join(words)}; {found['date']}"


def _ceiling(ceiling: Line | None) -> str:
    if ceiling is None:
        return ""
    rates = [f"{precision} {rate / 1e12:.3g} TFLOP/s" for precision, rate in ceiling["flops_per_s"].items()]
    copied = f"copies {ceiling['bytes_per_s'] / 1e12:.3g} TB/s, read and written"
    return f"Ceilings: {copied}; square matrices of {ceiling['matrix_width']}: {', '.join(rates)}"


def _training(line: Line, ceiling: Line | None) -> str:
    row, result = line["row"], line["result"]
    unit, rate = unit_of(row["model"]), (ceiling or {}).get("flops_per_s", {}).get(row["precision"])
    shape = "channels_last" if subject_of(row["model"]).example(1).ndim == 4 else "128 tokens"
    title = f"Training {row['model']}, {row['precision']}, {row['mode']}, {shape}, batch {result['batch']}"
    out = [
        f"{title}; interval over {result['rounds']} rounds of one process:\n",
        f"| row | step | {unit}/s | times dense | by the device's clock | MACs allow | realised | of the matrix rate | "
        "peak memory |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, found in result["rows"].items():
        share = f"{found['flops'] / found['step_ms'] * 1e3 / rate:.0%}" if rate else "–"
        device = f"{found['device_ratio']:.2f}" if "device_ratio" in found else "–"
        peak = f"{found['peak_bytes'] / 2**30:.1f} GiB" if found["peak_bytes"] else "–"
        out.append(
            f"| {name} | {found['step_ms']:.1f} ms | {1e3 * result['batch'] / found['step_ms']:.0f} | "
            f"{_ratio(found)} | {device} | {found['ceiling']:.2f} | {found['realised']:.2f} | {share} | {peak} |"
        )
    return "\n".join(out)


def _inference(lines: Sequence[Line]) -> str:
    if not lines:
        return ""
    out = [
        "Inference; ranks chosen for that batch and precision; interval over launches, control is dense again:\n",
        "| model | precision | batch | CUDA graph | engine | dense | alpha 2: times dense | chosen: times dense | "
        "MACs allow | realised | control | of the floor: dense, chosen |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        row, rows = line["row"], line["result"]["rows"]
        chosen, dense = rows["chosen"], rows["dense"]
        floors = [found["floor_ms"] and found["floor_ms"] / found["latency_ms"] for found in (dense, chosen)]
        graph = "on" if row["mode"] == "graph" else "off"
        out.append(
            f"| {row['model']} | {row['precision']} | {row['batch']} | {graph} | {line['result']['engine']} | "
            f"{dense['latency_ms']:.3f} ms | {_ratio(rows['formula'])} | {_ratio(chosen)} | {chosen['ceiling']:.2f} | "
            f"{chosen['realised']:.2f} | {rows['control']['ratio']:.3f} | "
            f"{', '.join('–' if share is None else f'{share:.0%}' for share in floors)} |"
        )
    return "\n".join(out)


def _engines(lines: Sequence[Line]) -> str:
    if not lines:
        return ""
    out = ["TensorRT:\n"]
    for line in lines:
        result = line["result"]
        told = ", ".join(f"{arm} {found['latency_ms']:.3f} ms" for arm, found in result["rows"].items())
        version = result["status"]["version"] or "not installed"
        out.append(f"- {_title(line)} ({version}): {_cell(result['says'])}{'; ' + told if told else ''}")
    return "\n".join(out)


def _reasons(lines: Sequence[Line]) -> str:
    """Of the rows that realise less than 0.7 of what their arithmetic allows."""
    out = []
    for line in lines:
        for arm, found in line["result"].get("profiles", {}).items():
            if found:
                top = "; ".join(f"{_cell(kernel['name'])} {kernel['share']:.0%}" for kernel in found["top"][:3])
                shares = " | ".join(f"{found[kind]:.0%}" for kind in ("busy", "matrix", "memory", "other"))
                out.append(f"| {_title(line)} | {arm} | {shares} | {top} |")
    if not out:
        return ""
    head = ["Where less than 0.7 is realised, dense beside it:\n"]
    head.append("| row | arm | kernels run | products | memory | other | most time |")
    return "\n".join([*head, "|---|---|---|---|---|---|---|", *out])


def _staircases(tables: LatencyTable, machine: str) -> str:
    """Of each condition the layers that were timed at most ranks."""
    out = []
    for conditions in dict.fromkeys(key[0] for key in tables.rows if key[0].fingerprint == machine):
        known = tables.usable(conditions)
        for signature in _most_timed(known):
            forms: dict[str, list[tuple[tuple[int, ...], float]]] = {}
            for (found, choice), latency in known.items():
                if found == signature and not isinstance(choice, KeepDense):
                    form = " ".join(
                        (choice.form, *([f"kernel {choice.kernel_on}"] if choice.form == "channel_svd" else []))
                    )
                    forms.setdefault(form, []).append((ranks_of(choice), latency))
            dense = known[signature, KeepDense()]
            for form, points in forms.items():
                shown = ", ".join(
                    f"{'×'.join(map(str, ranks))}: {latency:.4f}" for ranks, latency in sorted(points)[:_RANKS]
                )
                out.append(f"| {_in_words(conditions)} | {signature} | {form} | {dense:.4f} | {shown} |")
    if not out:
        return ""
    return "\n".join(
        [
            "Latency over rank, in ms:\n",
            "| measured | layer | form | dense | rank: latency |",
            "|---|---|---|---|---|",
            *out,
        ]
    )


def _most_timed(known: dict[tuple[LayerSignature, Any], float]) -> list[LayerSignature]:
    count: Callable[[LayerSignature], int] = lambda signature: sum(found == signature for found, _ in known)  # noqa: E731
    signatures = [found for found, choice in known if isinstance(choice, KeepDense)]
    return sorted(signatures, key=count, reverse=True)[:_STAIRCASES]


def _in_words(conditions: Conditions) -> str:
    kind = f"{conditions.backend}, {conditions.work}, {conditions.precision}, batch {conditions.batch}"
    return f"{kind}, {conditions.execution}"


def _ratio(found: Line) -> str:
    return f"{found['ratio']:.2f} ({found['low']:.2f} to {found['high']:.2f})"


def _title(line: Line) -> str:
    row = line["row"]
    batch = f"batch {row['batch']}" if row["batch"] else ""
    return " ".join(word for word in (row["part"], row["model"], row["precision"], row["mode"], batch) if word)


def _cell(text: str) -> str:
    return " ".join(str(text).replace("|", "/").split())
