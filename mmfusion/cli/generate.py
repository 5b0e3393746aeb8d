"""`mmfusion generate`: ask a trained model about pictures, sounds and series."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import Any

from mmfusion.cli.flags import allow, described, series
from mmfusion.cli.start import for_good

HELP = "ask a trained model about pictures, sounds and series"
DESCRIPTION = "Print what a model says about one thing: any pictures, sounds and series of it, a prompt, or both."
EXAMPLES = """\
  mmfusion generate runs/quickstart/TIME --image "IMG (1).jpg" --lang fr
  mmfusion generate RUN --image a.png --audio a.ogg --prompt "What's this, in French?" --n 3 --temperature 0.8
  mmfusion generate RUN --sensor watch.csv --rate-hz 50 --json"""

LAST_SEED = 2**63 - 1
NEVER_ASKED = "note: this model was pretrained on captions and never shown questions; it may pass over the prompt"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="RUN", help="run folder or checkpoint folder")
    for modality, kind in (("image", "picture"), ("audio", "sound"), ("sensor", "series: CSV or .npy")):
        parser.add_argument(
            f"--{modality}", action="append", metavar="FILE", help=f"{kind}; may be given several times"
        )
    parser.add_argument("--prompt", metavar="TEXT", help="any question or instruction")
    parser.add_argument("--lang", metavar="CODE", help="language to answer in (en, where nothing is asked)")
    series(parser)
    parser.add_argument("--n", type=int, default=1, metavar="N", help="answers, drawn with SEED, SEED + 1, … (1)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest piece each time (0)")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="draw from the likeliest pieces only (1)")
    parser.add_argument("--seed", type=int, default=0, help="the same answer for the same seed (0)")
    parser.add_argument("--max-new", type=int, default=48, metavar="N", help="pieces of an answer at most (48)")
    parser.add_argument("--json", action="store_true", help="one JSON object with all answers, at the end")
    allow(parser)


def run(options: argparse.Namespace) -> int:
    with for_good():
        from mmfusion import api

    if options.n < 1:
        raise api.InputError(f"--n: must be 1 or more, not {options.n}")
    if options.n > 1 and options.temperature == 0:
        raise api.InputError(f"--n {options.n}: at temperature 0 all answers are the same; add --temperature 0.8")
    if not 0 <= options.seed <= LAST_SEED - (options.n - 1):
        raise api.InputError(f"--seed {options.seed}: with --n {options.n} seeds must lie between 0 and {LAST_SEED}")
    model = api.load(options.folder, allow=options.allow)
    unasked = model.lineage.get("stage", "pretrain") == "pretrain"
    answers = []
    for seed in range(options.seed, options.seed + options.n):
        texts = _say(model, options, seed)
        if options.prompt and unasked and not answers:
            print(NEVER_ASKED, file=sys.stderr)
        said = ""
        for text in texts:
            said += text
            if not options.json:
                print(text, end="", flush=True)
        answers.append({"seed": seed, "text": said})
        if not options.json:
            print()
    if options.json:
        asked = {"run": options.folder, "prompt": options.prompt, "lang": options.lang}
        print(json.dumps({**asked, "answers": answers}, ensure_ascii=False))
    return 0


def _say(model: Any, options: argparse.Namespace, seed: int) -> Iterator[str]:
    asked = {name: getattr(options, name) for name in ("image", "audio", "sensor", "prompt", "lang")}
    sampling = {name: getattr(options, name) for name in ("temperature", "top_p", "max_new")}
    return model.stream(**asked, **described(options), **sampling, seed=seed)
