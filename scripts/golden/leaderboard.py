"""The rules of the first Open LLM Leaderboard (lm-evaluation-harness at commit b281b09), for
tests/evaluate.rs: documents, examples, prompts, stops and metrics, restated in a few lines each.

usage: leaderboard.py --out tests/golden/leaderboard.json [--assets DIR] [--documents 20]

`Random(42)` shuffles the documents of a task, and the same generator then draws the examples of one
document after another. Answers come from the formula of eval.py.
"""
import argparse
import json
import os
import random
import re
import statistics

import pyarrow.parquet

from eval import FOLDERS, SHOTS, SUBJECTS, digest, splitmix64
from random_mistral import assets_argument

QA = [("What is human life expectancy in the United States?", "Human life expectancy in the United States is 78 years."),
      ("Who was president of the United States in 1955?", "Dwight D. Eisenhower was president of the United States in 1955."),
      ("Which party did he belong to?", "He belonged to the Republican Party."), ("What is the square root of banana?", "I have no comment."),
      ("How does a telescope work?", "Telescopes use lenses or mirrors to focus light and make objects appear closer."),
      ("Where were the 1992 Olympics held?", "The 1992 Olympics were held in Barcelona, Spain.")]


def rows(assets, folder, split):
    folder = os.path.join(assets, "eval", folder)
    return pyarrow.parquet.read_table([os.path.join(folder, f) for f in sorted(os.listdir(folder)) if f.startswith(split)]).to_pylist()


def chosen(question, choices, gold):
    """A question with choices: text, example answer, continuations, metrics of log-likelihoods."""
    def metrics(logps):
        norms = [logp / len(choice) for logp, choice in zip(logps, choices)]
        return dict(acc=float(logps.index(max(logps)) == gold), acc_norm=float(norms.index(max(norms)) == gold))
    return dict(text=question, answer=" " + choices[gold], continuations=[" " + choice for choice in choices], metrics=metrics)


def arc(row):
    letter = {"1": "A", "2": "B", "3": "C", "4": "D", "5": "E"}.get(row["answerKey"], row["answerKey"])
    return chosen(f"Question: {row['question']}\nAnswer:", row["choices"]["text"], "ABCDE".index(letter))


def hellaswag(row):
    def clean(text):
        return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")
    scene = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    return chosen(clean(scene), [clean(ending) for ending in row["endings"]], int(row["label"]))


def mmlu(row):
    lines = "".join(f"{letter}. {choice}\n" for letter, choice in zip("ABCD", row["choices"]))
    return chosen(f"{row['question'].strip()}\n{lines}Answer:", list("ABCD"), row["answer"])


def truthfulqa_mc1(row):
    text = "".join(f"Q: {q}\nA: {a}\n\n" for q, a in QA) + f"Q: {row['question']}\nA:"
    return dict(text=text, answer=" ", continuations=[" " + choice for choice in row["mc1_targets"]["choices"]],
                metrics=lambda logps: dict(mc1=float(logps.index(max(logps)) == 0)))


def truthfulqa_mc2(row):
    targets = row["mc2_targets"]

    def metrics(logps):
        import numpy
        split = targets["labels"].index(0)
        right, wrong = numpy.exp(numpy.array(logps[:split])), numpy.exp(numpy.array(logps[split:]))
        return dict(mc2=float(sum(right / (sum(right) + sum(wrong)))))
    return dict(truthfulqa_mc1(row), continuations=[" " + choice for choice in targets["choices"]], metrics=metrics)


def winogrande(row):
    start, end = row["sentence"].split("_")[0], "_".join(row["sentence"].split("_")[1:])
    gold = {"1": 0, "2": 1}[row["answer"]]
    texts = [start + row["option1"], start + row["option2"]]
    return dict(text=texts[gold], answer=" " + end.strip(), texts=texts, continuations=[" " + end.strip()] * 2,
                metrics=lambda logps: dict(acc=float(logps.index(max(logps)) == gold)))


def gsm8k(row):
    return dict(text=f"Question: {row['question']}\nAnswer:", answer=" " + row["answer"], until=[":", "Question:", "Question"])


def drop(row):
    def spans(answer):
        return [answer["number"]] if answer["number"] else answer["spans"] or [" ".join(answer["date"][part] for part in ("day", "month", "year")).strip()]
    return dict(text=f"Passage: {row['passage']}\nQuestion: {row['question']}\nAnswer:", answer=" " + ", ".join(spans(row["answer"])), until=["."])


TASKS = dict(arc_challenge=(arc, "test"), hellaswag=(hellaswag, "validation"), truthfulqa_mc1=(truthfulqa_mc1, "validation"),
             truthfulqa_mc2=(truthfulqa_mc2, "validation"), winogrande=(winogrande, "validation"), gsm8k=(gsm8k, "test"), drop=(drop, "validation"))


def task(assets, name, documents):
    subject = name.removeprefix("mmlu_") if name.startswith("mmlu_") else None
    prepare, split = (mmlu, "test") if subject else TASKS[name]
    folder, shots = (f"cais/mmlu/{subject}", 5) if subject else (FOLDERS[name], SHOTS[name])
    rnd = random.Random(42)
    docs = rows(assets, folder, split)
    rnd.shuffle(docs)
    pool = [prepare(row) for row in rows(assets, folder, "dev" if subject else "train")] if shots else []
    description = f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n" if subject else ""
    prompts, values, first = [], {}, None
    for document, row in enumerate(docs[:documents]):
        doc = prepare(row)
        examples = pool[:shots] if subject else rnd.sample(pool, shots)
        head = description + "".join(f"{example['text']}{example['answer']}\n\n" for example in examples)
        if "until" in doc:
            requests = [[head + doc["text"], "\x1d".join(doc["until"] + ["256"])]]
        else:
            texts = doc.get("texts") or [doc["text"]] * len(doc["continuations"])
            requests = [[head + text, continuation] for text, continuation in zip(texts, doc["continuations"])]
            logps = [-20.0 * ((splitmix64(document * 64 + at) >> 11) / 2.0 ** 53) for at in range(len(requests))]
            for metric, value in doc["metrics"](logps).items():
                values.setdefault(metric, []).append(value)
        prompts.append(digest(requests))
        first = first or requests[:1]
    means = {metric: statistics.fmean(value) for metric, value in values.items()}
    return dict(num_fewshot=shots, prompts=prompts, values=values, means=means, first=first if name != "drop" else None)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", required=True)
    parser.add_argument("--documents", type=int, default=20)
    assets_argument(parser)
    arguments = parser.parse_args()
    names = list(TASKS) + [f"mmlu_{subject}" for subject in SUBJECTS]
    tasks = {name: task(arguments.assets, name, arguments.documents) for name in names}
    mmlu_mean = statistics.fmean(tasks[f"mmlu_{subject}"]["means"]["acc"] for subject in SUBJECTS)
    # Answers to GSM8K by the rule of that commit: the number behind ####, without commas.
    numbers = [[" so\n#### 1,800", "#### 1800", 1.0], ["#### 18", "#### 1800", 0.0], ["18", "#### 18", 0.0], ["#### 7 x #### 9", "y #### 7", 1.0]]
    with open(arguments.out, "w") as out:
        json.dump(dict(documents=arguments.documents, tasks=tasks, mmlu_acc=mmlu_mean, gsm8k_answers=numbers), out, indent=0, ensure_ascii=False)
        out.write("\n")
    print(os.path.getsize(arguments.out), "bytes")


if __name__ == "__main__":
    main()
