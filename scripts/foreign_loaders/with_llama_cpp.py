"""Runs llama.cpp on a checkpoint: converts the folder to GGUF, loads it on the CPU and writes the
results as JSON.

usage: with_llama_cpp.py FOLDER OUT.json [--converter convert_hf_to_gguf.py] [--outtype f32] [--keep FILE.gguf]

Needs llama-cpp-python, gguf, torch and transformers. The converter is part of llama.cpp; the source
package of llama-cpp-python contains it in vendor/llama.cpp. The script takes it from --converter,
from LLAMA_CPP_CONVERTER, or from PATH.

Weights, key-value cache and matrix products are float32, so that precision is no cause of
differences.
"""
import argparse
import os
import shutil
import subprocess
import sys
import tempfile

from results import CHATS, TOKENS, greedy, write


def find_converter(given):
    names = [given, os.environ.get("LLAMA_CPP_CONVERTER"), shutil.which("convert_hf_to_gguf.py")]
    for name in filter(None, names):
        if os.path.isfile(name):
            return name
        sys.exit(f"{name} does not exist")
    sys.exit("llama.cpp's converter was not found: unpack the source of llama-cpp-python (pip download --no-deps --no-binary :all: "
             "llama-cpp-python) and give --converter …/vendor/llama.cpp/convert_hf_to_gguf.py")


def convert(converter, folder, gguf, outtype):
    command = [sys.executable, converter, folder, "--outfile", gguf, "--outtype", outtype]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"the converter failed:\n{done.stdout[-3000:]}")


def load(gguf):
    import llama_cpp
    # By default the key-value cache is float16.
    float32 = llama_cpp.GGML_TYPE_F32
    return llama_cpp.Llama(gguf, n_ctx=512, n_batch=512, type_k=float32, type_v=float32, flash_attn=False, verbose=False)


def render(llama, chat):
    """The text of the chat, rendered by the template in the GGUF. Without a template, the last
    message alone."""
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter
    template = llama.metadata.get("tokenizer.chat_template")
    if template is None:
        return chat[-1]["content"]
    text = llama._model.token_get_text
    formatter = Jinja2ChatFormatter(template=template, eos_token=text(llama.token_eos()), bos_token=text(llama.token_bos()))
    return formatter(messages=chat).prompt


def next_logits(llama):
    import numpy

    def of(ids):
        llama.reset()
        llama.eval(ids)
        row = llama._ctx.get_logits_ith(-1)
        return numpy.ctypeslib.as_array(row, shape=(llama.n_vocab(),)).copy()
    return of


def end_ids(llama):
    import llama_cpp
    vocab = llama_cpp.llama_model_get_vocab(llama.model)
    return {token for token in range(llama.n_vocab()) if llama_cpp.llama_vocab_is_eog(vocab, token)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("out")
    parser.add_argument("--converter")
    parser.add_argument("--outtype", default="f32", help="type of the GGUF's weights: f32, bf16 or q8_0")
    parser.add_argument("--keep", help="keep the GGUF as this file")
    arguments = parser.parse_args()
    converter = find_converter(arguments.converter)
    with tempfile.TemporaryDirectory() as scratch:
        gguf = arguments.keep or os.path.join(scratch, "model.gguf")
        convert(converter, arguments.folder, gguf, arguments.outtype)
        import llama_cpp
        llama = load(gguf)
        prompts = []
        for chat in CHATS:
            text = render(llama, chat)
            ids = llama.tokenize(text.encode(), add_bos=False, special=True)
            new, logits = greedy(next_logits(llama), ids, TOKENS, end_ids(llama))
            prompts.append({"text": text, "ids": ids, "greedy_ids": new, "last_logits": logits})
        facts = {"eos_token_id": llama.token_eos(), "bos_token_id": llama.token_bos(),
                 "end_ids": sorted(end_ids(llama)),
                 "has_template": "tokenizer.chat_template" in llama.metadata,
                 "adds_bos": llama.metadata.get("tokenizer.ggml.add_bos_token") == "true"}
        write(arguments.out, "llama.cpp", f"llama-cpp-python {llama_cpp.__version__}", prompts, **facts)
        llama.close()


if __name__ == "__main__":
    main()
