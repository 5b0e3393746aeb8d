"""Reinforcement learning on what can be checked word for word: names in an asked language, before and after, by seeds.

uv run python experiments/chain/policy.py --from RUN                 rows L5 of results.policy.json, of three seeds
uv run python experiments/chain/policy.py --from RUN --quick         the same path with few steps
uv run python experiments/chain/policy.py --from RUN --split validation steps=50     to try something else

Nothing is learnt from rewards where no answer is ever right, and a few minutes of `stage=finetune` on everything teach
no name. So a pretrained model first learns the names of one category in four languages, by `stage=finetune` and only so
long that some are right; then `stage=policy` goes on from there, asked for the same names in other words, without
answers.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import data_prep.checks
import data_prep.conversations
from data_prep import derived
from data_prep.conversations import FORMS, LANGUAGES, Question, called_in, talk
from experiments.chain.run import SAMPLE, asked
from experiments.processes import TRAIN, timed
from experiments.results import matrix_gflops, row, save
from mmfusion.types import Sample

HERE = Path(__file__).parent
COMMAND = "uv run python experiments/chain/policy.py --from RUN"
CATEGORY = "animals-nature"
HEARD, UNHEARD = FORMS["translation"][:5], FORMS["translation"][5:10]  # in finetune; in policy
SPOKEN = ("en", "fr", "ru", "zh")  # of those that the other vendor's pictures have names in too
KNOWN, OTHER = "known", "other-vendor"  # the pictures of training, in other words; another vendor's
LIMIT = "evaluation.answers.limit=1000"  # questions of each kind
FEW = ["steps=4", "data.batch_size=8", "data.workers=0", "trainer.limit_val_batches=1"]
NAMED = "steps=150"  # of finetune: so that some answers are right
WEIGHTS = ("~data.weights", "+data.weights.known=1")
Rows = list[dict[str, Any]]


def names(root: Path, split: str, forms: Sequence[str] = HEARD) -> Iterator[Sample]:
    """What each picture of the category is called in each of the languages, a conversation of one question each.

    Pictures of training are asked about in every split, in that split's words; beside them stand the split's own.
    """
    *_, validation, test = FORMS["translation"]
    words: Sequence[str] = {"train": forms, "validation": [validation], "test": [test]}[split]
    for kind, source in ((KNOWN, "train"), *([(OTHER, split)] if split != "train" else [])):
        for sample in derived.samples_of(root, source):
            if sample.labels.get("category") == CATEGORY:
                for (language, name), form in itertools.product(called_in(sample).items(), words):
                    if language in SPOKEN:
                        asked = form.format(language=LANGUAGES[language])
                        key = f"{sample.key}-{language}-{split}-{words.index(form)}"
                        yield talk(sample, key, [Question(kind, tuple(sample.of("image")[:1]), asked, name)])


def prompts(root: Path, split: str) -> Iterator[Sample]:
    """Such questions in words that the conversations of training do not have, with a check in place of the answer."""
    for one in names(root, split, UNHEARD):
        yield from data_prep.checks.opened(one)


def prepared(work: Path) -> tuple[Path, Path]:
    """The folders of conversations and of prompts."""
    scripts = [Path(__file__), Path(data_prep.conversations.__file__), Path(data_prep.checks.__file__)]
    derived.prepare(work / "names", SAMPLE, names, scripts)
    derived.prepare(work / "prompts", SAMPLE, prompts, scripts)
    return work / "names", work / "prompts"


def trained(stage: str, run: Path, checkpoint: Path, root: Path, *overrides: str) -> float:
    """Seconds that the run of a stage took."""
    given = [f"checkpoint={checkpoint}", f"paths.run={run}", f"data.root={root}", "evaluation=none", "earlier={}"]
    seconds, _ = timed([*TRAIN, f"stage={stage}", *given, *overrides], run.with_suffix(".log"))
    print(f"{seconds:6.0f} s  {run.name}", flush=True)
    return seconds


def gains(found: Rows, before: str, seeds: dict[str, int]) -> Rows:
    """L5: of each seed and kind of question, exact answers after minus before."""
    base = {one["metric"]: one["value"] for one in found if one["checkpoint"] == before}
    rows = []
    for one in (one for one in found if "difference" in one):
        kind, gap = one["metric"].removesuffix(", exact"), one["difference"]
        if kind.startswith("about "):  # both kinds together
            continue
        judged = {"must": "> 0", "judged": gap["ci95"][0]} if gap["ci95"] else {}  # of one cluster there is none
        rows.append(row(f"L5.{kind}.{seeds[one['checkpoint']]}", f"exact after policy minus before, {kind}",
                        gap["value"], "", n=one["n"], ci95=gap["ci95"], **judged,
                        beside={"before": base[one["metric"]], "after": one["value"]}))  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="of the training from rewards")
    parser.add_argument("--from", dest="pretrained", type=Path, required=True, help="a run of `mmfusion train`")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--quick", action="store_true", help="few steps; writes results.policy.quick.json")
    parser.add_argument("--keep", type=Path, help="keep the runs and logs in this folder")
    options = parser.parse_args()
    work = options.keep or Path(tempfile.mkdtemp(prefix="mmfusion-policy-"))
    work.mkdir(parents=True, exist_ok=True)
    talks, open_ = prepared(work)
    before = work / "before"
    taught = trained("finetune", before, options.pretrained, talks, NAMED, *(FEW if options.quick else []))
    runs: dict[str, int] = {}
    seconds: dict[str, float] = {}
    for seed in options.seeds:
        run = work / f"policy{seed}"
        runs[run.name] = seed
        more = [*WEIGHTS, f"seed={seed}", *(FEW if options.quick else []), *options.overrides]
        seconds[str(seed)] = trained("policy", run, before, open_, *more)
    limit = "evaluation.answers.limit=8" if options.quick else LIMIT
    folders = [before, *(work / name for name in runs)]
    found = asked(work, "policy", folders, open_, "--split", options.split, "--task", "answers", limit)
    rows = gains(found, before.name, runs)
    beside = {"matrix GFLOP/s": matrix_gflops(), "finetune": taught, **seconds}
    longest = max(seconds.values())
    rows.append(row("L5.seconds", "training of one seed", longest, "s", n=len(runs), must="<= 240", beside=beside))
    quick = ".quick" if options.quick or options.split != "test" else ""
    save(HERE / f"results.policy{quick}.json", rows, COMMAND)


if __name__ == "__main__":
    main()
