"""Do others read a checkpoint as transformers does? Runs every loader that is installed on a folder and prints a table.

usage: check.py FOLDER [--only files,transformers,llama.cpp,vLLM,lm-eval] [--converter convert_hf_to_gguf.py] [--vllm-python PYTHON]

`same`: chat text, token ids and ids of special tokens are transformers', greedy tokens too, each the likeliest there within --tolerance of its
logits. Ends with 1 where a loader failed or differs; one that is not installed is only said to be missing.
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
    """What transformers says of the folder."""

    def __init__(self, folder, tolerance):
        import transformers
        from check_checkpoint import load
        self.version, self.tolerance = transformers.__version__, tolerance
        self.model, self.plain, self.complaints = load(folder)
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    def text(self, chat):
        if self.tokenizer.chat_template is None:
            return chat[-1]["content"]
        return self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)

    def differences(self, said):
        """What differs in a loader's file, a line each."""
        from check_checkpoint import differences
        from said import CHATS
        for kind in ("eos", "bos"):
            ours = getattr(self.tokenizer, f"{kind}_token_id")
            if ours is not None and said[f"{kind}_token_id"] != ours:
                yield f"{kind}_token_id is {said[f'{kind}_token_id']}, transformers has {ours}"
        if said["has_template"] != (self.tokenizer.chat_template is not None):
            yield "the chat template is " + ("there only" if said["has_template"] else "missing")
        # What ends a text there has to end it here, for greedy ids to end alike.
        self.model.generation_config.eos_token_id = said["end_ids"]
        for chat, prompt in zip(CHATS, said["prompts"]):
            if prompt["text"] != self.text(chat):
                yield f"chat text {prompt['text']!r}, transformers has {self.text(chat)!r}"
                continue
            yield from differences(self.model, self.plain, prompt, self.tolerance)


def started(script, *words, python=sys.executable):
    """Output of one of the scripts beside this one, and whether it ended well."""
    done = subprocess.run([python, os.path.join(HERE, script), *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.stdout, done.returncode == 0


def reason(text):
    """The last line of an output that speaks of an error, else its last."""
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
    return row("transformers", reference.version, "NO" if reference.complaints else "yes", "–", reference.complaints)


def answering(name, module, script, words, reference, python=sys.executable):
    """A loader that answers the chats."""
    if not is_installed(module, python):
        return row(name, MISSING, "–", "–")
    with tempfile.TemporaryDirectory() as scratch:
        path = os.path.join(scratch, "said.json")
        out, is_good = started(script, words[0], path, *words[1:], python=python)
        if not is_good or not os.path.isfile(path):
            return row(name, "", "NO", "–", [reason(out)])
        with open(path) as file:
            said = json.load(file)
    wrong = list(reference.differences(said))
    count = sum(len(prompt["greedy_ids"]) for prompt in said["prompts"])
    return row(name, said["version"], "yes", "NO" if wrong else f"yes, {count} tokens", wrong)


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
    parser.add_argument("--only", default=",".join(LOADERS), help="some of " + ", ".join(LOADERS))
    parser.add_argument("--converter", help="llama.cpp's convert_hf_to_gguf.py")
    parser.add_argument("--vllm-python", default=sys.executable, help="the Python that has vLLM, which asks for packages of its own versions")
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
