"""The table of a document from a file that step_time.py wrote."""

import json
import statistics
from pathlib import Path

from gendistil.common.flags import markdown_table

WORDS = {"student": "a ConvNet-3 student's step", "embedding": "a ConvNet-3 embedding, no gradient",
         "generator": "stage 1, default network", "gen_condense": "stage 1, published network",
         "pool_match": "stage 2, published network", "dm": "DM, all classes", "dsa": "DSA's gradient matching, all classes",
         "dream": "DREAM's choice among 5,000 images a class", "inversion": "GAN inversion, all classes"}


def table(path):
    """The markdown table of a file that `step_time.py` wrote."""
    results = json.loads(Path(path).read_text(encoding="utf-8"))
    who = ("published", "ours, not compiled", "ours")
    lines = []
    for stage in (stage for stage in WORDS if stage in results):
        row = results[stage]
        first = next(name for name in who if name in row["seconds"])
        ratios = sorted(a / b for a, b in zip(row["seconds"][first], row["seconds"]["ours"]))
        seconds = [f"{row['median_seconds'][name]:.3g} s" if name in row["seconds"] else "–" for name in who]
        memory = [f"{row['reports'][name][-1]['mib']:,.0f}" if name in row["seconds"] else "–" for name in who]
        lines.append([f"{WORDS[stage]}, {row['batch_size']}", *seconds,
                      f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})", " / ".join(memory)])
    header = ["step, images of it", *who, "times as fast", f"peak memory, MiB: {' / '.join(who)}"]
    text = [markdown_table(header, lines), ""]
    for stage in (stage for stage in ("student", "embedding") if stage in results):
        row = results[stage]
        peak = statistics.median(report["convolution_gflops"] for report in row["reports"]["peak"])
        ours, plain = (row["reports"][name][0]["gflop"] / row["median_seconds"][name] for name in who[:0:-1])
        text.append(f"{WORDS[stage][0].upper()}{WORDS[stage][1:]}: {ours:.0f} GFLOPS, {plain:.0f} not compiled. That is "
                    f"{100 * ours / peak:.0f} % of the {peak:.0f} of a bare convolution of 128 channels.")
    return "\n".join([*text, "", f"{results['device']}, torch {results['torch']}, {results['precision']}."])
