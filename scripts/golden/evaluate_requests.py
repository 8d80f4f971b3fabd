"""Golden answers of lm-eval's model for transformers to single requests, with which tests compare the evaluation engine.

usage: evaluate_requests.py STORIES260K_FOLDER --out tests/golden/evaluate_requests.json

The requests cover the rules of encoding: blanks at the end of a context, a continuation that merges with its
context, an empty context, a text that begins with BOS, contexts longer than the model, several answers to one
question, answers of one token and of many, stops of several tokens, and a limit on the tokens.
"""
import argparse
import json
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

STORY = ("Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a big, "
         "red ball. She wanted to play with it, but it was too high. Lily's mom said, \"Let's go to the park.\" ")
SHOTS = "".join(f"Question: Where is the {thing}?\nAnswer: The {thing} is in the {place}.\n\n"
                for thing, place in [("ball", "park"), ("dog", "house"), ("bird", "tree"), ("cat", "box"), ("toy", "room")])
QUESTION = "Question: Where is the fish?\nAnswer:"
SCORED = [
    *[(SHOTS + QUESTION, f" The fish is in the {place}.") for place in ("water", "tree", "big blue sea", "box")],
    *[(SHOTS + "Question: Who has the ball?\nAnswer:", answer) for answer in (" Tom", " Lily", " the dog", " the little bird")],
    *[(SHOTS + QUESTION, f" {letter}") for letter in "ABCD"],
    ("Once upon a", " time"), ("Once upon a ", "time"), ("Once upon a \n ", "time"), ("Once upon a time", ","), ("Once upon a ti", "me, there"),
    ("", "Once upon a time"), ("", "<s>Once upon"), ("<s>Once upon a", " time"), ("Tim and", " Sue"), ("Tim", " and Sue were friends."),
    (STORY * 9, "Lily was happy."), (STORY * 9, "The dog was sad, and"), (STORY * 5 + "Then", " she went home."),
    ("Größe 東京", " 🔥 und mehr"),
]
TEXTS = [
    (SHOTS + QUESTION, dict(until=["\n\n"], max_gen_toks=40)),
    (SHOTS + "Question: Where is Tom?\nAnswer:", dict(until=["Question:", "</s>"], max_gen_toks=60)),
    (SHOTS + "Question: What does the dog see?\nAnswer:", dict(until=["."], max_gen_toks=30)),
    ("Once upon a time,", dict(until=["mom said", "park"], max_gen_toks=90)),
    ("<s>Once upon a time,", dict(until=[], max_gen_toks=12)),
    (STORY * 9, dict(until=["Lily"], max_gen_toks=50)),
    ("The", dict(until=["never occurs"], max_gen_toks=1)),
    *[(SHOTS + f"Question: Where is {name}?\nAnswer:", dict(until=["\n"], max_gen_toks=25)) for name in
      ("Tim", "Sue", "Ben", "Mia", "Max", "Anna", "Sam", "Lucy", "Jack", "mom", "dad", "Spot", "the sun")],
]

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("--out", required=True)
arguments = parser.parse_args()

lm = HFLM(pretrained=arguments.model, dtype="float32", device="cpu", batch_size=1)
instances = [Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=index) for index, pair in enumerate(SCORED)]
# One at a time: among requests with the same ids that are split at different places, lm-eval reads the log-probs of the wrong tokens.
scores = [lm.loglikelihood([instance], disable_tqdm=True)[0] for instance in instances]
instances = [Instance(request_type="generate_until", doc={}, arguments=(context, dict(settings, do_sample=False)), idx=index)
             for index, (context, settings) in enumerate(TEXTS)]
texts = lm.generate_until(instances, disable_tqdm=True)
golden = dict(
    loglikelihoods=[dict(context=context, continuation=continuation, logp=float(f"{logp:.9g}"), is_greedy=greedy)
                    for (context, continuation), (logp, greedy) in zip(SCORED, scores)],
    texts=[dict(context=context, until=settings["until"], max_tokens=settings["max_gen_toks"], text=text)
           for (context, settings), text in zip(TEXTS, texts)])
with open(arguments.out, "w") as file:
    json.dump(golden, file, ensure_ascii=False, indent=1)
    file.write("\n")
