"""
Writes reference_cases.json: the scores of other packages for generated answers.

Run by hand, in an environment with pycocoevalcap, lm-eval and lmms-eval (`--no-deps`) and with Java. The tests read the
file alone. Importing lmms-eval's MathVista builds a client of OpenAI, so set `OPENAI_API_KEY` to any text; nothing is sent.
"""

import json
import random
import subprocess
from importlib.metadata import version
from pathlib import Path

import numpy as np
from lm_eval.api.metrics import exact_match_hf_evaluate
from lmms_eval.api.metrics import anls
from lmms_eval.tasks._task_utils.vqa_eval_metric import EvalAIAnswerProcessor
from lmms_eval.tasks.chartqa.utils import relaxed_correctness
from lmms_eval.tasks.mathvista.mathvista_evals import MathVistaEvaluator
from lmms_eval.tasks.mme.utils import mme_aggregate_results, mme_process_results
from lmms_eval.tasks.mmmu.utils import eval_open, parse_open_response
from lmms_eval.tasks.ocrbench.utils import ocrbench_process_results
from lmms_eval.tasks.pope.utils import (
    pope_aggregate_accuracy,
    pope_aggregate_f1_score,
    pope_aggregate_precision,
    pope_aggregate_recall,
    pope_process_results,
)
from lmms_eval.tasks.textvqa.utils import textvqa_process_results
from lmms_eval.tasks.vmcbench import utils as vmcbench
from pycocoevalcap.cider.cider_scorer import CiderScorer
from pycocoevalcap.tokenizer import ptbtokenizer


DRAW = random.Random(0)
WORDS = [
    "a",
    "an",
    "the",
    "A",
    "The",
    "two",
    "two.",
    "Two",
    "none",
    "ten",
    "cat",
    "cats",
    "cat's",
    "dog's",
    "dont",
    "don't",
    "Im",
    "U.S.A.",
    "3.5",
    "3.5.",
    "1,000",
    "1,000.",
    "$5.00",
    "50%",
    "red,",
    "white",
    "red-white",
    "a/b",
    '"STOP"',
    "(left)",
    "isnt",
    "who's",
    "it's",
    "yes",
    "Yes.",
    "no",
    "No,",
    "10:30",
    "e-mail",
    "theyre",
    "somebody'd",
    "x=2",
    "@home",
    "#1",
    "5",
    ".5",
    "5.",
    "hello?",
    "wow!",
    "...",
    ";",
    "couldnt've",
    "what's",
    "7",
    "seven",
    "É",
]
JAR = Path(ptbtokenizer.__file__).parent / "stanford-corenlp-3.4.1.jar"


def text(most: int, least: int = 1) -> str:
    return DRAW.choice((" ", " ", " ", "  ", "\n")).join(DRAW.choices(WORDS, k=DRAW.randint(least, most)))


def changed(answer: str) -> str:
    """The answer, or one that differs a little, or another one."""
    kind = DRAW.random()
    if kind < 0.3:
        return answer
    if kind < 0.4:
        return answer.upper()
    if kind < 0.5:
        return f" {answer}."
    if kind < 0.7:
        place = DRAW.randrange(len(answer))
        return answer[:place] + DRAW.choice("xyz 5.") + answer[place + 1 :]
    return text(3)


def vqa() -> dict:
    processor = EvalAIAnswerProcessor()
    normalized = [
        [raw, processor.process_digit_article(processor.process_punctuation(raw.replace("\n", " ").strip()))]
        for raw in (text(5) for _ in range(300))
    ]
    scores = []
    for _ in range(200):
        pool = [text(2) for _ in range(3)]
        answers = DRAW.choices(pool, weights=(5, 2, 1), k=10)
        prediction = changed(DRAW.choice(pool))
        score = textvqa_process_results({"answers": list(answers), "question_id": 0}, [prediction])["exact_match"]
        scores.append([prediction, answers, score])
    return {"normalized": normalized, "evalai": scores}


def cider() -> list:
    sets = []
    vocabulary = [f"w{index}" for index in range(30)]
    for size in (2, 40, 80):
        images = []
        for _ in range(size):
            base = DRAW.choices(vocabulary, weights=range(30, 0, -1), k=DRAW.randint(1, 14))
            vary = lambda base=base: [word if DRAW.random() < 0.8 else DRAW.choice(vocabulary) for word in base]  # noqa: E731
            references = [vary()[: DRAW.randint(1, 14)] for _ in range(DRAW.randint(1, 5))]
            images.append([vary() if DRAW.random() < 0.95 else [], references])
        scorer = CiderScorer()
        for candidate, references in images:
            scorer += (" ".join(candidate), [" ".join(words) for words in references])
        images_scores = scorer.compute_score()[1]
        sets.append([[*image, float(score)] for image, score in zip(images, images_scores, strict=True)])
    return sets


def tokens() -> list:
    things = [
        "man",
        "dog",
        "man's dog",
        "women's hats",
        "dogs' toys",
        "teddy-bear",
        "hot-dog",
        "TV",
        "TV's",
        "No. 5 bus",
    ]
    things += ["St. Bernard", "Mr. Potato Head", "3-year-old girl"]
    verbs = (
        "isn't|sits on|can't reach|is riding|'s holding|that says \"STOP\" near|at 10:30 by|(left) of|they're watching"
    )
    places = (
        "the U.S.|a $5.50 table|1st Ave.|John's house|a table/desk|AT&T park|room #12|the 1990's café|a 12\" plate"
    )
    ends = [
        "",
        ".",
        " .",
        "!",
        "!!",
        "...",
        ",",
        " - close up.",
        ", etc.",
        "; it's raining",
        " at 5 p.m.",
        " and/or a cup?",
    ]
    captions = [
        f"{DRAW.choice(['A', 'a', 'The', 'Two', 'An'])} {DRAW.choice(things)} {DRAW.choice(verbs.split('|'))} "
        f"{DRAW.choice(places.split('|'))}{DRAW.choice(ends)}"
        for _ in range(300)
    ]
    command = ["java", "-cp", str(JAR), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    printed = subprocess.run(command, input="\n".join(captions).encode(), capture_output=True, check=True).stdout
    lines = printed.decode().split("\n")
    return [
        [caption, [word for word in line.split() if word not in ptbtokenizer.PUNCTUATIONS]]
        for caption, line in zip(captions, lines, strict=False)
    ]


def answers() -> dict:
    cases = {"anls": [], "relaxed_accuracy": [], "ocrbench": [], "exact_match": []}
    for _ in range(300):
        golds = [text(3) for _ in range(DRAW.randint(1, 3))]
        prediction = changed(DRAW.choice(golds))
        cases["anls"].append([prediction, golds, anls(golds, [prediction])["anls"]])
        dataset = DRAW.choice(["HME100k", "svt"])
        row = {"answer": golds, "dataset": dataset, "question_type": ""}
        found = ocrbench_process_results(row, [f"It is {prediction} there"])["ocrbench_accuracy"]["score"]
        cases["ocrbench"].append([f"It is {prediction} there", golds, dataset, found])
        gold, given = golds[0].strip(), changed(golds[0]).strip()
        same = exact_match_hf_evaluate([given], [gold], ignore_case=True, ignore_punctuation=True)["exact_match"]
        cases["exact_match"].append([given, gold, float(same)])
        value = DRAW.choice(["0", "5", "12.5", "50%", "1,000", "-3", "0.04", "yes", "Red", "1e3", "nan"])
        try:
            near = f"{float(value) * DRAW.choice([1, 1.04, 1.05, 1.06, 0.95, 0.94]):.4g}"
        except ValueError:
            near = DRAW.choice([value.lower(), value.upper(), "0.5", "0.52"])
        prediction = DRAW.choice([near, value, f"{near}%", text(1)])
        cases["relaxed_accuracy"].append([prediction, value, float(relaxed_correctness(prediction, value))])
    return cases


def mme() -> dict:
    replies = [
        "Yes",
        "No",
        "yes.",
        "n",
        "Y",
        "Not at all",
        "I know",
        "It is, yes",
        "",
        "Yes, it is",
        " no ",
        "None",
        "maybe",
    ]
    rows, results = [], []
    for category in ("existence", "count", "OCR", "code_reasoning"):
        for question in range(25):
            for _ in range(2):
                gold, reply = DRAW.choice(["Yes", "No"]), DRAW.choice(replies)
                row = {"answer": gold, "category": category, "question_id": f"{category}/{question}"}
                (result,) = mme_process_results(row, [reply]).values()
                rows.append([reply, gold, category, row["question_id"], result["score"]])
                results.append(result)
    perception = mme_aggregate_results([result for result in results if result["category"] != "code_reasoning"])
    cognition = mme_aggregate_results([result for result in results if result["category"] == "code_reasoning"])
    return {"rows": rows, "perception": perception, "cognition": cognition}


def pope() -> dict:
    rows = [[DRAW.choice(["yes", "no", "Yes", "No"]), DRAW.choice(["yes", "no"])] for _ in range(200)]
    results = [
        pope_process_results({"answer": gold, "question_id": index}, [reply])["pope_accuracy"]
        for index, (reply, gold) in enumerate(rows)
    ]
    measures = {
        "accuracy": pope_aggregate_accuracy,
        "precision": pope_aggregate_precision,
        "recall": pope_aggregate_recall,
        "f1": pope_aggregate_f1_score,
    }
    return {"rows": rows, **{name: float(measure(results)) for name, measure in measures.items()}}


class _Unread:
    @staticmethod
    def choice(_letters):
        return None


def mmmu() -> dict:
    vmcbench.random = _Unread
    options = ["a red car", "two dogs", "12 kg", "none of these"]
    pieces = [
        "A",
        "B",
        "(A)",
        "(B)",
        "(D)",
        "C)",
        "the answer",
        "is",
        "NASA",
        "A cat",
        "two dogs",
        "a red car",
        "12 kg",
    ]
    pieces += ["because", "of", "it shows", "and", "D", "not"]
    choices = []
    while len(choices) < 300:
        answer = " ".join(DRAW.choices(pieces, k=DRAW.randint(1, 8))) + DRAW.choice(["", ".", ".,", ",.", "!", "'"])
        letters = "ABCD"
        chosen = vmcbench.parse_multi_choice_response(answer, list(letters), dict(zip(letters, options, strict=True)))
        choices.append([answer, options, chosen])
    starts = ["The answer is", "So", "It could be", "Thus x =", "Therefore", "I think", "result", "final", "it weighs"]
    values = ["5", "5.0", "12,000", "1e3", "3.14159", "blue", "Blue whale", "x", "-7", "42%", "", "."]
    open_answers = []
    for _ in range(300):
        lines = [
            f"{DRAW.choice(starts)} {DRAW.choice(values)}{DRAW.choice(['', '.', ' kg'])}"
            for _ in range(DRAW.randint(1, 3))
        ]
        answer = DRAW.choice(["\n", ". "]).join(lines)
        gold = DRAW.choice(["5", "12000", "1000", "3.14", "blue", "x", "-7", ["blue whale", "whale"], "42"])
        open_answers.append([answer, gold, float(eval_open(gold, parse_open_response(answer)))])
    return {"choice": choices, "open": open_answers}


def mathvista() -> list:
    evaluator = MathVistaEvaluator.__new__(MathVistaEvaluator)
    choices = ["12 cm", "blue", "Blue-green", "none"]
    found = ["(B)", "A", "(c) Blue", "blu", "12", "D", "noone", "green", " B "]
    numbers = ["5", "5.678", "-3.2", "1e3", "five", "", "0.005", "12.0", "inf"]
    cases = []
    for _ in range(200):
        kind = DRAW.choice(["choice", "integer", "float", "list"])
        raw = DRAW.choice(found) if kind == "choice" else DRAW.choice(numbers)
        precision = DRAW.choice([1, 2]) if kind == "float" else None
        question = "multi_choice" if kind == "choice" else "free_form"
        given = choices if kind == "choice" else None
        answer_type = "text" if kind == "choice" else kind
        expected = evaluator.normalize_extracted_answer(raw, given, question, answer_type, precision)
        cases.append([raw, answer_type, given, precision, expected])
    return cases


def plain(value):
    return value.item() if isinstance(value, np.generic) else value


if __name__ == "__main__":
    packages = ("pycocoevalcap", "lm-eval", "lmms-eval")
    content = {
        "versions": {name: version(name) for name in packages},
        "vqa": vqa(),
        "cider": cider(),
        "tokens": tokens(),
        **answers(),
        "mme": mme(),
        "pope": pope(),
        "mmmu": mmmu(),
        "mathvista": mathvista(),
    }
    target = Path(__file__).with_name("reference_cases.json")
    target.write_text(json.dumps(content, ensure_ascii=False, default=plain) + "\n", encoding="utf-8")
