"""The page of what coordination costs, from the records of ``lab/benchmarks/overhead.py`` alone."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from commit_lab.studies.overhead import (
    PLAIN,
    Arrival,
    Costs,
    Record,
    Spread,
    by_block,
    counted,
    courses_to_result,
    extrapolated,
    sampled,
    share_of,
    time_to_result,
    trainer_pairs,
    whole_run,
)
from commit_tuning.errors import UserError
from commit_tuning.shown import Markdown
from commit_tuning.train.compare.table import NOTHING, markdown_table

REFERENCE = "nano-llava-v2"
"""The shape whose run says how many steps the others measure."""

LATE = 200
SAMPLES, BLOCK = 8, 5
ORDER = (
    *("nano-llava-v2", "nano-blip2-v2", "llava-49k", "llava-128k", "llava-256k", "small-llava"),
    *("nano-llava-v2-bfloat16", "llava-49k-bfloat16", "nano-llava-v2-checkpointed", "llava-8k-compiled"),
    "llava-7b",
)
SETTINGS = {"llava-8k-compiled": "`torch.compile`", "nano-llava-v2-checkpointed": "Gradient checkpointing"}
OTHERS = ("methods", "memory", "growth", "trainers", "gpu-checks")
COMPARISONS = ("iconqa-nano-llava", "iconqa-nano-blip2", "base-rates-nano-llava", "base-rates-nano-blip2")


def read_records(folder: Path) -> dict[str, Record]:
    """The records in a folder by name.

    Raises:
        UserError: There is none of the shape that the page rests on, or one cannot be read.
    """
    try:
        records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the records in {folder} ({error}); remove the broken one") from None
    found = {record["name"]: record for record in records}
    if "rounds" not in found.get(REFERENCE, {}):
        raise UserError(f"no record of {REFERENCE} in {folder}; measure first: python lab/benchmarks/overhead.py")
    return found


class Page:
    """The parts of the page.

    Args:
        records: By name.
        comparisons: Folder of the comparisons that were run.
    """

    def __init__(self, records: Mapping[str, Record], comparisons: Path) -> None:
        self._records, self._comparisons = records, comparisons
        self._shapes = [records[name] for name in ORDER if "rounds" in records.get(name, {})]
        self._reference = records[REFERENCE]
        self._steps = len(self._reference["rounds"])
        self._late = min(LATE, self._steps // 2)
        self._share = share_of(self._reference["rounds"], "default")
        self._late_share = share_of(self._reference["rounds"], "default", self._late)

    def text(self) -> str:
        """The page as Markdown."""
        parts = [
            self._answer(), self._by_shape(), self._counted(), self._tiers(), self._trainers(), self._taken_apart(),
            self._methods(), self._memory(), self._growth(), self._other_settings(), self._gpu(),
            self._time_to_result(), self._how(),
        ]  # fmt: skip
        return "\n".join(part for part in parts if part)

    def _through(self, record: Record) -> bool:
        return "default" in record["rounds"][0]

    def _costs(self, record: Record) -> Costs:
        """What kinds of step cost; under a run's rounds, those of the default."""
        return Costs.of(record["rounds"], "default") if self._through(record) else sampled(record)

    def _run(self, record: Record, arm: str = "default", late: bool = False) -> Spread | None:
        if self._through(record):
            return whole_run(record, arm, self._late if late else 0)
        return extrapolated(record, self._late_share if late else self._share) if arm == "default" else None

    def _shares(self, record: Record) -> tuple[float, float]:
        if self._through(record):
            rounds = record["rounds"]
            return share_of(rounds, "default"), share_of(rounds, "default", self._late)
        return self._share, self._late_share

    def _answer(self) -> str:
        nano = [record for record in self._shapes if self._through(record)]
        lines = [
            f"On {record['title']} the default takes {_times(self._run(record))} times the time of plain training over"
            f" {self._steps} steps, and {_times(self._run(record, late=True))} times from step {self._late} on."
            for record in nano
        ]
        others = [
            run.median
            for record in self._shapes
            if record not in nano and record["name"] not in SETTINGS and (run := self._run(record))
        ]
        if others:
            lines.append(f"On the other shapes below it takes {min(others):.2f} to {max(others):.2f} times as long.")
        return (
            "# What it costs\n\n"
            + "\n".join(lines)
            + "\nA step that is not measured costs next to nothing."
            + "\nMeasured steps cost more, and how many there are is the schedule's choice."
            + "\n\nThis page is written from records by `python lab/benchmarks/overhead.py --page`."
            + " `make bench` measures them anew."
            + self._quick()
            + "\n"
        )

    def _quick(self) -> str:
        if not self._reference["about"]["quick"]:
            return ""
        return "\n\n**These are figures of a quick check. They are no result.**"

    def _by_shape(self) -> str:
        rows = []
        for record in self._shapes:
            through, share = self._through(record), self._shares(record)
            rows.append(
                [
                    record["title"] + self._mark(record),
                    f"{1e3 * _plain(record):.0f}",
                    _spread(self._costs(record).extra()),
                    f"{100 * share[0]:.0f} / {100 * share[1]:.0f}" + ("" if through else " ‡"),
                    _spread(self._run(record), 3),
                    _spread(self._run(record, late=True), 3),
                    _spread(self._run(record, "monitor"), 3),
                ]
            )
        skipped = [
            f"- `{name}` was not measured: {record['skipped']}"
            for name in (*ORDER, *OTHERS)
            if "skipped" in (record := self._records.get(name, {}))
        ]
        head = [
            "shape", "plain step, ms", "extra of a measured step, in plain steps", "measured, %: all / late",
            f"default, {self._steps} steps", f"default from step {self._late} on",
            f"monitor alone, {self._steps} steps",
        ]  # fmt: skip
        return (
            "## By shape\n\nRun time over that of plain training: median (lowest to highest) of up to ten runs that are"
            " dealt from the pairs of steps.\nA run with ‡ was not trained through. Its measured share is that of"
            f" {self._reference['title']}, and the times of its steps are its own.\n"
            + self._stale()
            + "\n"
            + markdown_table(head, rows)
            + ("\n" + "\n".join(skipped) + "\n" if skipped else "")
        )

    def _mark(self, record: Record) -> str:
        same = all(record["about"][key] == self._reference["about"][key] for key in ("source", "quick"))
        return "" if same else " †"

    def _stale(self) -> str:
        if not any(map(self._mark, self._shapes)):
            return ""
        return "A shape with † was measured with another version of the source, or in another number of steps.\n"

    def _counted(self) -> str:
        rows = []
        for record in self._shapes:
            facts, counts, (share, late) = record["facts"], record["counted"], self._shares(record)
            answers = facts["answers"] * min(1.0, SAMPLES / facts["batch"])
            passes = counts["measured"]["vocabulary"] - counts["unmeasured"]["vocabulary"]
            rows.append(
                [
                    record["title"],
                    f"{counts[PLAIN]['flop'] / 1e9:.1f}",
                    f"{counts['measured']['flop'] / counts[PLAIN]['flop']:.2f}",
                    f"{counted(record, 'flop', share):.3f} / {counted(record, 'flop', late):.3f}",
                    f"{passes / (answers * facts['vocabulary']):.0f}",
                    f"{counted(record, 'vocabulary', share):.3f} / {counted(record, 'vocabulary', late):.3f}",
                ]
            )
        head = [
            "shape", "plain step, GFLOP", "measured step, in plain ones", f"run: all {self._steps} / late",
            "passes over the answers' logits", "logits touched, run: all / late",
        ]  # fmt: skip
        return (
            "## Counted work\n\nFloating-point operations are those of torch's own counter. It counts matrix products,"
            " and no work on single numbers.\nA pass is one operation over the logits of all measured answer tokens."
            " A plain step touches the logits of all tokens.\nThese figures have no noise.\n\n"
            + markdown_table(head, rows)
        )

    def _tiers(self) -> str:
        rounds = self._reference["rounds"]
        names = [name for name in rounds[0] if name not in (PLAIN, "monitor")]
        if len(names) < 2:
            return ""
        rows = [
            [
                Markdown(f"`{name}`"), f"{100 * share_of(rounds, name):.1f}",
                f"{100 * share_of(rounds, name, self._late):.1f}",
                _spread(whole_run(self._reference, name), 3), _spread(whole_run(self._reference, name, self._late), 3),
            ]
            for name in names
        ]  # fmt: skip
        head = ["probe", "measured, %", "measured, %, late", f"{self._steps} steps", f"from step {self._late} on"]
        return f"## Cost tiers\n\n{self._reference['title']}.\n\n" + markdown_table(head, rows)

    def _trainers(self) -> str:
        record = self._records.get("trainers", {})
        if "trainers" not in record:
            return ""
        rows = []
        for name, runs in record["trainers"].items():
            spreads = [trainer_pairs(runs, share) for share in (self._share, self._late_share)]
            rows.append(
                [Markdown(f"`CoMMIT{name}` over `{name}`"), str(len(runs["pairs"])), *(_spread(s, 3) for s in spreads)]
            )
        head = ["trainers", "pairs of runs", f"{self._steps} steps", f"from step {self._late} on"]
        return (
            "## Beside Trainer and SFTTrainer\n\nThe same training of nano LLaVA in short runs, in turn, loading and"
            f" logging included. The measured share is that of {self._reference['title']} above.\n\n"
            + markdown_table(head, rows)
        )

    def _taken_apart(self) -> str:
        shapes = [record for record in self._shapes if "profile" in record]
        names = list(dict.fromkeys(part for record in shapes for part in record["profile"]))
        rows = []
        for record in shapes:
            parts, total = record["profile"], sum(record["profile"].values())
            rows.append([record["title"], *(f"{100 * parts[n] / total:.0f}" if n in parts else NOTHING for n in names)])
        return (
            "## Where a measured step spends its time\n\nPercent of what measuring adds to a step.\n\n"
            + markdown_table(["shape", *names], rows)
        )

    def _methods(self) -> str:
        rounds = self._records.get("methods", {}).get("rounds", [])
        if not rounds:
            return ""
        rows = [[name, _spread(by_block(rounds, name, BLOCK))] for name in rounds[0] if name != PLAIN]
        return (
            "## Other settings\n\nThe regulariser looks at every step, whatever the schedule of the measurement is."
            f" Nano BLIP-2, {len(rounds)} steps in blocks of {BLOCK}.\n\n"
            + markdown_table(["setting", "time over plain training"], rows)
        )

    def _memory(self) -> str:
        peaks = self._records.get("memory", {}).get("peaks", {})
        if not peaks:
            return ""
        rows = [
            [self._title(name), f"{peak[PLAIN]:.0f}", f"{peak['measured']:.0f}",
             f"{100 * (peak['measured'] / peak[PLAIN] - 1):+.1f}"]
            for name, peak in peaks.items()
        ]  # fmt: skip
        return (
            "## Memory\n\nPeak memory of a process that trains, in MiB, with every step measured.\n\n"
            + markdown_table(["shape", "plain", "measured", "change, %"], rows)
        )

    def _title(self, name: str) -> str:
        return str(self._records.get(name, {}).get("title", name))

    def _growth(self) -> str:
        record = self._records.get("growth", {})
        rows = []
        for point in record.get("points", []):
            costs = Costs.of(point["rounds"], "every", start=record["warm_up"])
            plain = statistics.median(seconds for _, seconds in costs.measured)
            extra = statistics.median(own - beside for own, beside in costs.measured)
            trained = sum(point["facts"]["trained"].values())
            rows.append(
                [point["axis"], point["value"], f"{trained / 1e6:.2f}", f"{1e3 * plain:.1f}", f"{1e3 * extra:.1f}",
                 _spread(costs.extra())]
            )  # fmt: skip
        if not rows:
            return ""
        head = ["what grows", "to", "trained, millions", "plain step, ms", "extra, ms", "extra, in plain steps"]
        return (
            "## How it grows\n\nA measured step of a small LLaVA (width 128, 2 layers, batch 8, 32 tokens of text, 8 of"
            " them the answer, vocabulary of 8k), one size changed at a time. The points of the vocabulary have a batch"
            " of 4, 16 tokens and 6.\nA measurement looks at no more than 8 samples, so its share falls in large"
            " batches.\n\n" + markdown_table(head, rows)
        )

    def _other_settings(self) -> str:
        lines = []
        for name, title in SETTINGS.items():
            record = self._records.get(name, {})
            if "rounds" in record:
                extra, plain = _spread(self._costs(record).extra()), 1e3 * _plain(record)
                lines.append(f"- {title}: a measured step costs {extra} plain steps of {plain:.0f} ms more.")
            elif "skipped" in record:
                lines.append(f"- {title}: did not run here ({record['skipped']}).")
        lines.append("- Quantised weights: not run. bitsandbytes is made for GPUs.")
        return "## Compiled, checkpointed, quantised\n\n" + "\n".join(lines) + "\n"

    def _gpu(self) -> str:
        checks = self._records.get("gpu-checks", {}).get("checks")
        if checks is None and "rounds" not in self._records.get("llava-7b", {}):
            return (
                "## On a GPU\n\n**Not run: there was no GPU.** LLaVA-1.5-7B with LoRA in bfloat16 (random weights) and"
                " two minutes of checks (8-bit AdamW, QLoRA, a real loss scaler in fp16) are prepared:\n\n"
                "```\npython lab/benchmarks/overhead.py --device cuda --shape llava-7b gpu-checks\n```\n"
            )
        rows = [[name, found] for name, found in (checks or {}).items()]
        return "## On a GPU\n\n" + (markdown_table(["check", "result"], rows) if rows else "The checks were not run.\n")

    def _time_to_result(self) -> str:
        arrivals = list(self._arrivals())
        if not arrivals:
            return ""
        exact = all(line.exact for line in arrivals)
        rows = [_arrival_cells(line) for line in arrivals]
        head = ["comparison", "method", "base rate", "there, of seeds", "steps", "seconds of training"]
        note = (
            ""
            if exact
            else " Most runs kept no losses of single steps. So `≤` is the run's end, or its first stop, at which it"
            " was there. When it came there is not known."
        )
        return (
            "## Time to a result\n\nWhen was each method, at its chosen rate, where Constant LR's training loss ended"
            " (the mean of the last 20 steps, at its own chosen rate, seed by seed)? Means over the seeds that came"
            f" there, from the comparisons in `lab/results/`.{note} Seconds are of the machine that a run was on,"
            " beside other work.\n\n" + markdown_table(head, rows)
        )

    def _arrivals(self) -> Iterable[Arrival]:
        yield from (Arrival(**line) for line in self._records.get("time-to-result", {}).get("arrivals", []))
        for name in COMPARISONS:
            table = self._comparisons / name / "table.json"
            if table.is_file():
                yield from time_to_result(table.parent, json.loads(table.read_text(encoding="utf-8"))["rows"])
        yield from courses_to_result(self._comparisons)

    def _how(self) -> str:
        hardware, versions = self._reference["hardware"], self._reference["versions"]
        packages = ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers") if name in versions)
        return (
            "## How it was measured\n\n"
            "- Every arm trains a copy of its own in one process. Each round makes one step of each, and begins with"
            " another one every time. The time is the processor's, not the wall's.\n"
            "- A pair is a step of ours and the plain step of the same round. Pairs are dealt out to ten runs, and the"
            " tables have the median and the range of the ten.\n"
            "- Where fewer than ten steps are measured late, the last ten that were say what one costs.\n"
            "- The plain loop is forward pass, backward pass, clipping, AdamW.\n"
            f"- One core of {hardware.get('cpu', 'a processor')}, {packages}.\n"
            "- `make bench` takes about 15 minutes. `python lab/benchmarks/overhead.py --quick` is a check of a"
            " few.\n"
        )


def page_of(records: Mapping[str, Record], comparisons: Path) -> str:
    """The page, as Markdown.

    Args:
        records: By name, of `read_records`.
        comparisons: Folder of the comparisons that were run.
    """
    return Page(records, comparisons).text()


def _plain(record: Record) -> float:
    return statistics.median(float(one[PLAIN][0]) for one in record["rounds"][record.get("warm_up", 0) :])


def _spread(spread: Spread | None, digits: int = 2) -> str:
    if spread is None:
        return NOTHING
    return f"{spread.median:.{digits}f} ({spread.low:.{digits}f} to {spread.high:.{digits}f})"


def _times(spread: Spread | None) -> str:
    return NOTHING if spread is None else f"{spread.median:.2f}"


def _arrival_cells(line: Arrival) -> Sequence[str]:
    bound = "" if line.exact else "≤ "
    return [
        line.comparison,
        line.method,
        line.rates,
        f"{line.arrived} of {line.seeds}",
        NOTHING if line.steps is None else f"{bound}{line.steps:.0f}",
        NOTHING if line.seconds is None else f"{bound}{line.seconds:.0f}",
    ]
