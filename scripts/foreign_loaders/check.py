"""Checks that other programs read a checkpoint as transformers does. Runs every installed loader on
a folder and prints a table.

usage: check.py FOLDER [--only files,transformers,llama.cpp,vLLM,lm-eval]
                [--converter convert_hf_to_gguf.py] [--vllm-python PYTHON]

`same` means: chat text, token ids and ids of special tokens equal those of transformers, and each
greedy token is the most likely one in transformers, up to --tolerance of its logits. The exit code
is 1 if a loader failed or differs. A loader that is not installed is listed as such.
"""
import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(1, os.path.dirname(HERE))
LOADERS = ["files", "transformers", "llama.cpp", "vLLM", "lm-eval"]
MISSING = "not installed"


class Reference:
    """The results of transformers on the folder."""

    def __init__(self, folder, tolerance):
        import transformers
        from check_checkpoint import load
        self.version, self.tolerance = transformers.__version__, tolerance
        self.model, self.plain, self.problems = load(folder)
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    def text(self, chat):
        if self.tokenizer.chat_template is None:
            return chat[-1]["content"]
        return self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)

    def differences(self, answers):
        """The differences in a loader's results, one line each."""
        from check_checkpoint import differences
        from results import CHATS
        for kind in ("eos", "bos"):
            ours = getattr(self.tokenizer, f"{kind}_token_id")
            if ours is not None and answers[f"{kind}_token_id"] != ours:
                yield f"{kind}_token_id is {answers[f'{kind}_token_id']}, transformers has {ours}"
        if answers["has_template"] != (self.tokenizer.chat_template is not None):
            yield "the chat template is " + ("extra" if answers["has_template"] else "missing")
        # The same ids must end a text here, so that greedy decoding ends at the same token.
        self.model.generation_config.eos_token_id = answers["end_ids"]
        for chat, prompt in zip(CHATS, answers["prompts"]):
            if prompt["text"] != self.text(chat):
                yield f"chat text {prompt['text']!r}, transformers has {self.text(chat)!r}"
                continue
            yield from differences(self.model, self.plain, prompt, self.tolerance)


def started(script, *words, python=sys.executable):
    """The output of another script of this folder, and whether it succeeded."""
    done = subprocess.run([python, os.path.join(HERE, script), *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.stdout, done.returncode == 0


def reason(text):
    """The last line of an output that names an error, else its last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "Error: " in line or "error: " in line]
    return (errors or lines or [""])[-1][:200]


def is_installed(module, python):
    if python == sys.executable:
        return importlib.util.find_spec(module) is not None
    return subprocess.run([python, "-c", f"import {module}"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL).returncode == 0


def row(loader, version, loaded, same, notes=()):
    return {"loader": loader, "version": version, "loaded": loaded, "same": same, "notes": list(notes)}


def files(folder):
    out, is_good = started("files.py", folder)
    wrong = [line for line in out.splitlines() if line.startswith("WRONG")]
    if not is_good and not wrong:
        wrong = [reason(out)]
    return row("files", "", "yes", "yes" if is_good else "NO", wrong)


def transformers(reference):
    return row("transformers", reference.version, "NO" if reference.problems else "yes", "–", reference.problems)


def answering(name, module, script, words, reference, python=sys.executable):
    """The row of a loader that answers the chats."""
    if not is_installed(module, python):
        return row(name, MISSING, "–", "–")
    with tempfile.TemporaryDirectory() as scratch:
        path = os.path.join(scratch, "answers.json")
        out, is_good = started(script, words[0], path, *words[1:], python=python)
        if not is_good or not os.path.isfile(path):
            return row(name, "", "NO", "–", [reason(out)])
        with open(path) as file:
            answers = json.load(file)
    wrong = list(reference.differences(answers))
    count = sum(len(prompt["greedy_ids"]) for prompt in answers["prompts"])
    return row(name, answers["version"], "yes", "NO" if wrong else f"yes, {count} tokens", wrong)


def lm_eval(folder):
    if not is_installed("lm_eval", sys.executable):
        return row("lm-eval", MISSING, "–", "–")
    out, is_good = started("with_lm_eval.py", folder)
    from importlib.metadata import version
    scores = ["  ".join(line.split()) for line in out.splitlines() if "±" in line]
    return row("lm-eval", version("lm_eval"), "yes" if is_good and scores else "NO", "–", scores if is_good else [reason(out)])


def table(rows):
    titles = ["loader", "version", "loaded", "same"]
    widths = [max(len(str(r[title])) for r in [*rows, {t: t for t in titles}]) for title in titles]
    lines = ["  ".join(title.ljust(width) for title, width in zip(titles, widths))]
    for r in rows:
        lines.append("  ".join(str(r[title]).ljust(width) for title, width in zip(titles, widths)).rstrip())
        lines.extend(f"    {note}" for note in r["notes"])
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--only", default=",".join(LOADERS), help="a subset of " + ", ".join(LOADERS))
    parser.add_argument("--converter", help="llama.cpp's convert_hf_to_gguf.py")
    parser.add_argument("--vllm-python", default=sys.executable, help="a Python with vLLM, which needs its own versions of packages")
    parser.add_argument("--tolerance", type=float, default=1e-3)
    arguments = parser.parse_args()
    chosen, folder = arguments.only.split(","), arguments.folder
    unknown = set(chosen) - set(LOADERS)
    if unknown:
        parser.error(f"no such loader: {', '.join(unknown)}")
    os.environ["HF_HUB_OFFLINE"] = "1"
    converter = ["--converter", arguments.converter] if arguments.converter else []
    rows, reference = [], None
    if set(chosen) & {"transformers", "llama.cpp", "vLLM"}:
        reference = Reference(folder, arguments.tolerance)
    made = {
        "files": lambda: files(folder),
        "transformers": lambda: transformers(reference),
        "llama.cpp": lambda: answering("llama.cpp", "llama_cpp", "with_llama_cpp.py", [folder, *converter], reference),
        "vLLM": lambda: answering("vLLM", "vllm", "with_vllm.py", [folder], reference, arguments.vllm_python),
        "lm-eval": lambda: lm_eval(folder),
    }
    for name in LOADERS:
        if name in chosen:
            rows.append(made[name]())
    print(table(rows))
    sys.exit(1 if any("NO" in (r["loaded"], r["same"]) for r in rows) else 0)


if __name__ == "__main__":
    main()
