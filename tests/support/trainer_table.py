"""The table of the Trainer's arguments in docs/trainer.md, from the code. Run this file to write it."""

from __future__ import annotations

from pathlib import Path

from overnight.config.trainer import ACCEPTED, OURS, REFUSED

PAGE = Path(__file__).parents[2] / "docs" / "trainer.md"
BEGIN, END = "<!-- The table is written by tests/support/trainer_table.py -->\n", "<!-- end of the table -->\n"


def table() -> str:
    rows = ["| argument | status | rule or reason |", "| --- | --- | --- |"]
    for name, declared in ACCEPTED.items():
        rows.append(f"| `{name}` | taken | {declared.metadata.get('rule') or _CHOICES[name]} |")
    rows += [f"| `{name}` | overnight sets it | {reason} |" for name, reason in OURS.items()]
    rows += [f"| `{name}` | refused | {reason} |" for name, reason in REFUSED.items()]
    return "\n".join(rows) + "\n"


_CHOICES = {
    "gradient_clip_algorithm": "must be norm or value",
    "accelerator": "must be auto, cpu, gpu, cuda or mps; not searchable",
}


def parts_of_page() -> tuple[str, str, str]:
    """What comes before the table, the table, and what follows."""
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    inside, _, after = rest.partition(END)
    return before, inside, after


if __name__ == "__main__":
    before, _, after = parts_of_page()
    PAGE.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}", "utf-8")
