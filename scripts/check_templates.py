"""Renders chats with the chat templates of many model families, as transformers does, for comparison with the program.

usage: check_templates.py CHATS.parquet OUT.jsonl [--rows 200]

The templates are those that TRL's package has. A line of OUT is a template: its name, its text, and for each chat the messages, the tools,
further variables, whether a generation prompt follows, and the text that transformers renders (or null if the template refuses the chat).
`spans` are the assistant's characters by TRL's training template of the same family; they are null if that template does not exist or
gives another text. tests/transformers.rs reads the file.
"""
import argparse
import json
import os

import pyarrow.parquet as pq
import trl
from transformers.utils.chat_template_utils import render_jinja_template

FAMILIES = ["llama3", "llama3_1", "llama3_2", "gemma", "gemma3", "qwen2_5", "qwen3", "qwen3_instruct_2507", "phi3", "phi3_5"]
SPECIAL = dict(bos_token="<s>", eos_token="</s>")
FOLDER = os.path.join(os.path.dirname(trl.__file__), "chat_templates")
WEATHER = dict(type="function", function=dict(
    name="weather", description="The weather of a place & day.",
    parameters=dict(type="object", properties=dict(place=dict(type="string"), day=dict(type="integer", minimum=1)), required=["place"])))


def template_text(name):
    path = os.path.join(FOLDER, f"{name}.jinja")
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            return file.read()
    return None


def joined(spans):
    """Spans that touch are one."""
    whole = []
    for start, end in spans:
        if whole and whole[-1][1] == start:
            whole[-1][1] = end
        else:
            whole.append([start, end])
    return whole


def render(template, chat):
    try:
        texts, spans = render_jinja_template(
            [chat["messages"]], tools=chat["tools"], chat_template=template, add_generation_prompt=chat["add_generation_prompt"],
            return_assistant_tokens_mask=True, **SPECIAL, **chat["variables"])
        return texts[0], joined(spans[0])
    except Exception:  # the template refuses the chat
        return None, None


def chats(path, rows):
    """The rows, and some of them with a system message, thoughts, tools, and a generation prompt."""
    def case(messages, tools=None, prompt=False, **variables):
        return dict(messages=messages, tools=tools, variables=variables, add_generation_prompt=prompt)

    for index, row in enumerate(pq.read_table(path, columns=["messages"]).to_pylist()[:rows]):
        messages = [dict(role=message["role"], content=message["content"]) for message in row["messages"]]
        yield case(messages)
        if index % 5 == 0:
            yield case([dict(role="system", content=f" Be brief, number {index}.\n"), *messages])
            yield case(messages[:-1], prompt=True)
            yield case(messages[:-1], prompt=True, enable_thinking=False)
            thoughtful = [dict(message, reasoning_content="I look it up.\n") if message["role"] == "assistant" else message
                          for message in messages]
            yield case(thoughtful)
            inline = [dict(message, content="<think>\nHm.\n</think>\n\n" + message["content"]) if message["role"] == "assistant" else message
                      for message in messages]
            yield case(inline)
            call = dict(type="function", function=dict(name="weather", arguments=dict(place="Zürich", day=index + 1)))
            steps = [messages[0], dict(role="assistant", content="", tool_calls=[call]),
                     dict(role="tool", name="weather", content='{"sky": "grey"}'), dict(role="assistant", content="It is grey.")]
            yield case(steps, tools=[WEATHER])
            yield case(messages, tools=[WEATHER])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chats")
    parser.add_argument("out")
    parser.add_argument("--rows", type=int, default=200)
    arguments = parser.parse_args()
    with open(arguments.out, "w", encoding="utf-8") as out:
        for name in FAMILIES:
            own, training = template_text(name), template_text(f"{name}_training")
            cases = []
            for chat in chats(arguments.chats, arguments.rows):
                text, _ = render(own, chat)
                marked, spans = render(training, chat) if training else (None, None)
                cases.append(dict(chat, text=text, spans=spans if text is not None and marked == text else None))
            json.dump(dict(name=name, template=own, special=SPECIAL, cases=cases), out, ensure_ascii=False)
            out.write("\n")


if __name__ == "__main__":
    main()
