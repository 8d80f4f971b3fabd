"""Kernel tests and golden runs on the device."""

import re
from collections.abc import Iterator

import golden
import golden_names
from context import Context
from results import Row

TEST_LINE = re.compile(r"^test (\S+)(?: - should panic)? \.\.\. .*?(ok|FAILED|ignored)?$")
RESULT_LINE = re.compile(r"^(ok|FAILED|ignored)$")
# Seconds for a test that is run again by itself.
ALONE = 20.0


def test_results(text: str) -> dict[str, str]:
    """`ok` or `FAILED` of each test that ended. What a test prints may come before its result."""
    results, name = {}, None
    for line in text.splitlines():
        if match := TEST_LINE.match(line):
            name = match[1]
            if match[2]:
                results[name] = match[2]
        elif name and RESULT_LINE.match(line):
            results.setdefault(name, line)
    return results


def kernel_tests(context: Context) -> Iterator[Row]:
    """The tests of the kernels, one after another. A test that fails is run again by itself, since
    an error of the device ends all later tests too."""
    program = context.programs / "kernels"
    device = {"FAVONIUS_TEST_DEVICE": context.device}
    # Without a GPU the tests of attention take many minutes; CI runs them.
    skipped = ["--skip", "attention"] if context.is_rehearsal else []
    finished = context.run([program, "--test-threads=1", *skipped], **device)
    results = test_results(finished.text)
    failed = [name for name, result in results.items() if result == "FAILED"]
    for name in failed:
        alone = context.run([program, name, "--exact"], ALONE, **device)
        if alone.code == 0:
            results[name] = "ok"
        yield Row(f"`{name}`", goal="passes", is_met=alone.code == 0,
                  note="only if it runs alone" if alone.code == 0 else alone.trouble())
    passed = sum(result == "ok" for result in results.values())
    note = finished.trouble(1) if not failed else ""
    yield Row("kernel tests that pass", unit=f"of {len(results)}", ours=passed, goal="all",
              is_met=passed == len(results) and (finished.code == 0 or bool(failed)), note=note)


def golden_runs(context: Context) -> Iterator[Row]:
    """Runs whose numbers TRL has computed, in float32; the first one in bfloat16 too."""
    names = golden_names.REHEARSED if context.is_rehearsal else golden_names.RUNS
    yield golden.run(context, names[0], is_bfloat16=False)
    yield golden.run(context, names[0], is_bfloat16=True)
    for name in names[1:]:
        yield golden.run(context, name, is_bfloat16=False)


def started(context: Context) -> Iterator[Row]:
    """Whether the program starts, and sees the device."""
    version = context.favonius("--version")
    yield Row("`favonius --version`", goal="starts", is_met=version.code == 0,
              note=version.text.strip()[:100] if version.code == 0 else version.trouble())
    seen = context.run([context.programs / "kernels", "the_gpu_form_is_chosen", "--exact"],
                       FAVONIUS_TEST_DEVICE=context.device)
    yield Row(f"device `{context.device}`", goal="is there", is_met=seen.code == 0,
              note=seen.trouble())
    if version.code or seen.code:
        raise RuntimeError("without program and device nothing else can run")
