"""Prompts and metrics of lm-eval, for tests/evaluate.rs.

usage: eval.py --out tests/golden/eval.json [--assets DIR] [--documents 24]

The tasks run on the excerpts in ASSETS/eval and on the task files in tests/evaluate/tasks. No model
is needed: the answers come from a formula, or are stored in the output.
    log-likelihood of request i of document d: h = splitmix64(d * 64 + i), u = (h >> 11) / 2^53,
    logp = -20 u, greedy if u < 1/4
The output has, for each task: a hash of each document's requests, the first request as a whole, the
values of all metrics, and the results with standard errors.
"""
import argparse
import hashlib
import importlib.metadata
import json
import os
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("DISABLE_MULTIPROC", "1")
from lm_eval import evaluator
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from random_mistral import assets_argument
from trl_runs import load_tokenizer

HERE = os.path.dirname(os.path.abspath(__file__))
TASK_FILES = os.path.join(HERE, "../../tests/evaluate/tasks")
SHOTS = dict(arc_challenge=25, hellaswag=10, truthfulqa_mc1=0, truthfulqa_mc2=0, winogrande=5, gsm8k=5, drop=3)
SUBJECTS = ["anatomy", "astronomy", "college_mathematics", "global_facts", "us_foreign_policy"]
FOLDERS = dict(arc_challenge="allenai/ai2_arc/ARC-Challenge", hellaswag="Rowan/hellaswag/data",
               truthfulqa_mc1="truthfulqa/truthful_qa/multiple_choice", truthfulqa_mc2="truthfulqa/truthful_qa/multiple_choice",
               winogrande="allenai/winogrande/winogrande_xl", gsm8k="openai/gsm8k/main", drop="EleutherAI/drop/data")
CHATS = dict(arc_challenge=2, mmlu_anatomy=2, winogrande=1, gsm8k=2, truthfulqa_mc1=0)
OWN = ["animals_choice", "animals_letters", "animals_word", "animals_targets", "animals_likelihood", "animals_contexts"]


def splitmix64(x):
    mask = (1 << 64) - 1
    z = (x + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ z >> 27) * 0x94D049BB133111EB) & mask
    return z ^ z >> 31


def text_of(task, doc, document):
    """Answers of several kinds, right and wrong."""
    task = task.removeprefix("excerpt_")
    if task == "gsm8k":
        number = doc["answer"].split("#### ")[-1]
        return [f" It is so.\n#### {number}", f" #### {number}.00", f" He pays ${number}.", " Nobody can tell", f" {number} or -7, and #### 12",
                f"#### {number}.\n\n#### 3"][document % 6]
    if task == "drop":
        answer = doc["answers"][document % len(doc["answers"])]
        return [" " + answer[0], " The " + " ".join(answer).upper() + "!", " an " + answer[-1] + " of two-three words", "", " 1,000",
                answer[0] + ".0" if answer[0].isdigit() else answer[0].split()[0]][document % 6]
    return [f" {doc['word']}", f"the {doc['word'].upper()}!", " 12", f" {doc['word']}  \n", "It is the cow"][document % 5]


class Formula(LM):
    """A model whose answers are a formula of the request's place."""

    def __init__(self, tokenizer=None):
        super().__init__()
        self.tokenizer = tokenizer

    def loglikelihood(self, requests):
        answers = []
        for request in requests:
            u = (splitmix64(request.doc_id * 64 + request.idx) >> 11) / 2.0 ** 53
            answers.append((-20.0 * u, u < 0.25))
        return answers

    def loglikelihood_rolling(self, requests):
        raise NotImplementedError

    def generate_until(self, requests):
        return [text_of(request.task_name, request.doc, request.doc_id) for request in requests]

    @property
    def tokenizer_name(self):
        return ""

    def apply_chat_template(self, chat, add_generation_prompt=True):
        return self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=add_generation_prompt,
                                                  continue_final_message=not add_generation_prompt)


def task_files(assets, folder):
    """Copies of lm-eval's own task files that read the excerpts, and the files of tests/evaluate."""
    index = TaskManager().task_index
    names = list(SHOTS) + [f"mmlu_{subject}" for subject in SUBJECTS]
    for name in names:
        data = os.path.join(assets, "eval", FOLDERS.get(name) or "cais/mmlu/" + name.removeprefix("mmlu_"))
        files = {file.split("-")[0]: os.path.join(data, file) for file in sorted(os.listdir(data))}
        lines = [f"include: {index[name].yaml_path}", f"task: excerpt_{name}", "tag: null", "dataset_path: parquet", "dataset_name: null",
                 "dataset_kwargs: " + json.dumps({"data_files": files})]
        with open(os.path.join(folder, f"{name}.yaml"), "w") as out:
            out.write("\n".join(lines) + "\n")
    with open(os.path.join(folder, "mmlu_excerpt.yaml"), "w") as out:
        out.write("group: mmlu_excerpt\ntask: " + json.dumps([f"excerpt_mmlu_{subject}" for subject in SUBJECTS])
                  + "\naggregate_metric_list: [{metric: acc, weight_by_size: true}]\n")
    for file in os.listdir(TASK_FILES):
        text = open(os.path.join(TASK_FILES, file)).read().replace("../data/", os.path.abspath(os.path.join(TASK_FILES, "../data")) + "/")
        with open(os.path.join(folder, file), "w") as out:
            out.write(text)
    return TaskManager(include_path=folder)


def requests_of(sample):
    arguments = sample["arguments"]
    arguments = arguments.values() if isinstance(arguments, dict) else arguments
    requests = []
    for one in arguments:
        context, second = list(one.values()) if isinstance(one, dict) else one
        if isinstance(second, dict):
            until = second["until"] if isinstance(second["until"], list) else [second["until"]]
            second = "\x1d".join(until + [str(second.get("max_gen_toks", 256))])
        requests.append([context, second])
    return requests


def digest(requests):
    text = "".join(f"{context}\x1f{second}\x1e" for context, second in requests)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def evaluated(manager, names, num_fewshot, documents, **kwargs):
    model = kwargs.pop("model", None) or Formula()
    return evaluator.simple_evaluate(model=model, tasks=names, num_fewshot=num_fewshot, limit=documents, task_manager=manager,
                                     bootstrap_iters=100000, log_samples=True, **kwargs)


def numbers(results):
    return {key: value for key, value in results.items() if isinstance(value, (int, float)) and key != "sample_count"}


def section(out, name, whole):
    """What the test compares of one task."""
    samples = out["samples"][name]
    filters = sorted({sample["filter"] for sample in samples})
    first = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]
    first.sort(key=lambda sample: sample["doc_id"])
    section = dict(num_fewshot=out["n-shot"][name], prompts=[digest(requests_of(sample)) for sample in first], results=numbers(out["results"][name]))
    if whole:
        section["first"] = requests_of(first[0])[:1]
    if isinstance(first[0]["resps"][0][0], str):
        section["texts"] = [sample["resps"][0][0] for sample in first]
        section["filtered"] = {f: [s["filtered_resps"][0] for s in sorted((s for s in samples if s["filter"] == f), key=lambda s: s["doc_id"])] for f in filters}
    metrics = [key.split(",")[0] for key in section["results"] if "," in key and "_stderr" not in key]
    section["values"] = {f"{metric},{f}": [sample[metric] for sample in sorted((s for s in samples if s["filter"] == f), key=lambda s: s["doc_id"])]
                         for f in filters for metric in dict.fromkeys(metrics) if isinstance(first[0].get(metric), (int, float))}
    return section


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", required=True)
    parser.add_argument("--documents", type=int, default=24)
    assets_argument(parser)
    arguments = parser.parse_args()
    golden = dict(made_with={"lm-eval": importlib.metadata.version("lm-eval")}, documents=arguments.documents, tasks={}, groups={}, chats={}, own={})
    with tempfile.TemporaryDirectory() as folder:
        manager = task_files(arguments.assets, folder)
        for name, shots in SHOTS.items():
            out = evaluated(manager, [f"excerpt_{name}"], shots, arguments.documents)
            golden["tasks"][name] = section(out, f"excerpt_{name}", name != "drop")
        out = evaluated(manager, ["mmlu_excerpt"], 5, arguments.documents)
        for subject in SUBJECTS:
            golden["tasks"][f"mmlu_{subject}"] = section(out, f"excerpt_mmlu_{subject}", subject == "anatomy")
        golden["groups"]["mmlu"] = numbers(out["results"]["mmlu_excerpt"])
        # Sizes differ in this one: the weights of the group are then seen.
        out = evaluated(manager, ["animals_group"], None, None)
        golden["groups"].update({name: numbers(out["results"][name]) for name in ["animals_group", "animals_group::inner"]})
        golden["group_shots"] = {name: out["n-shot"][name] for name in OWN if name in out["n-shot"]}
        for name in OWN:
            out = evaluated(manager, [name], None, None)
            golden["own"][name] = section(out, name, True)
        tokenizer = load_tokenizer(os.path.join(arguments.assets, "tokenizers/mistral-7b-v0.1"), None)
        for name, shots in CHATS.items():
            for multiturn in [False, True]:
                out = evaluated(manager, [f"excerpt_{name}"], shots, 3, model=Formula(tokenizer), apply_chat_template=True,
                                fewshot_as_multiturn=multiturn, system_instruction="Be short.")
                key = f"{name},{'multiturn' if multiturn else 'single'}"
                samples = sorted(out["samples"][f"excerpt_{name}"], key=lambda sample: sample["doc_id"])
                samples = [s for s in samples if s["filter"] == samples[0]["filter"]]
                golden["chats"][key] = dict(num_fewshot=shots, prompts=[digest(requests_of(sample)) for sample in samples],
                                            first=requests_of(samples[0])[:1] if name == "mmlu_anatomy" else None)
        for multiturn in [False, True]:
            out = evaluated(manager, ["animals_word"], None, 3, model=Formula(tokenizer), apply_chat_template=True, fewshot_as_multiturn=multiturn)
            samples = [s for s in out["samples"]["animals_word"] if s["filter"] == "first-word"]
            key = f"animals_word,{'multiturn' if multiturn else 'single'}"
            golden["chats"][key] = dict(num_fewshot=2, prompts=[digest(requests_of(sample)) for sample in samples], first=requests_of(samples[0])[:1])
    with open(arguments.out, "w") as out:
        json.dump(golden, out, indent=0, default=float, ensure_ascii=False)
        out.write("\n")
    print(os.path.getsize(arguments.out), "bytes")


if __name__ == "__main__":
    main()
