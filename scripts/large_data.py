"""Data larger than memory: makes it, and watches the memory of a command that uses it.

    python scripts/large_data.py make CHATS.parquet FOLDER --gigabytes 8
    python scripts/large_data.py watch [--every 60] [--kill-after SECONDS] -- favonius sft …

`make` writes chats to FOLDER/data/train-*.parquet without compression, so that the bytes of the
files are those of the text. A row is a sequence of questions and answers of the chats in
CHATS.parquet (column `messages`). The first two turns are another pair of turns in each row, so no
two rows are equal. The same arguments write the same files. FOLDER/data/test-*.parquet has 200
rows that are not in the others.

`watch` runs a command and prints, at an interval, the seconds since its start and the memory of its
process in MiB: resident memory (VmRSS), its part that is not a file (RssAnon), and the largest
resident memory so far (VmHWM). With --kill-after it ends the command by SIGKILL. The exit code is
that of the command, 137 after a kill.

`make` needs pyarrow and numpy; `watch` needs Linux.
"""

import argparse
import pathlib
import re
import subprocess
import sys
import time

SEED = 42
ROWS_A_GROUP = 20_000
BYTES_A_FILE = 512 << 20
TEST_ROWS = 200
# Turns of a row after the first two.
MORE_TURNS = (0, 3)


def turns_of(path):
    """All answered questions of the chats, without repetitions: two arrays of texts."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    turns = set()
    for chat in pq.read_table(path, columns=["messages"])["messages"].to_pylist():
        for asked, answered in zip(chat, chat[1:]):
            if (asked["role"], answered["role"]) == ("user", "assistant"):
                turns.add((asked["content"], answered["content"]))
    asked, answered = zip(*sorted(turns))
    return pa.array(asked, pa.large_string()), pa.array(answered, pa.large_string())


class Rows:
    """Rows by number. Row n begins with turns a and b, where (a, b) is the n-th of all pairs in a
    fixed random order; a has a stride that shares no factor with the number of pairs."""

    def __init__(self, turns):
        import numpy as np

        self.asked, self.answered = turns
        self.count = len(self.asked)
        self.pairs = self.count**2
        # Any stride near the golden section of all pairs spreads them.
        stride = int(self.pairs * 0.618)
        while np.gcd(stride, self.pairs) != 1:
            stride += 1
        self.stride = stride

    def batch(self, first, rows):
        """A record batch of the rows from number `first` on."""
        import numpy as np
        import pyarrow as pa

        if first + rows > self.pairs:
            sys.exit(f"{self.count} turns make only {self.pairs} different rows")
        random = np.random.default_rng([SEED, first])
        # Python's integers do not overflow.
        pairs = np.array([(number * self.stride) % self.pairs for number in range(first, first + rows)])
        more = random.integers(MORE_TURNS[0], MORE_TURNS[1], rows, endpoint=True)
        lengths = 2 + more
        starts = np.concatenate([[0], np.cumsum(lengths)])
        turns = random.integers(0, self.count, starts[-1])
        turns[starts[:-1]], turns[starts[:-1] + 1] = np.divmod(pairs, self.count)
        texts = pa.concat_arrays([self.asked, self.answered])
        places = np.stack([turns, turns + self.count], axis=1).reshape(-1)
        content = texts.take(pa.array(places))
        roles = pa.array(["user", "assistant"]).take(pa.array(np.arange(len(places)) % 2))
        messages = pa.StructArray.from_arrays([content, roles], ["content", "role"])
        lists = pa.LargeListArray.from_arrays(pa.array(2 * starts), messages)
        return pa.record_batch([lists], ["messages"])


def write(rows, path, first, most_rows, most_bytes):
    """Writes groups of rows until the file has that many rows or bytes; returns the next row."""
    import pyarrow.parquet as pq

    schema = rows.batch(0, 1).schema
    end = first + most_rows
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False, write_statistics=False) as out:
        while first < end and path.stat().st_size < most_bytes:
            count = min(ROWS_A_GROUP, end - first)
            out.write_batch(rows.batch(first, count), row_group_size=count)
            first += count
    return first


def make(arguments):
    folder = pathlib.Path(arguments.folder) / "data"
    folder.mkdir(parents=True)
    rows = Rows(turns_of(arguments.chats))
    total = int(arguments.gigabytes * 1e9)
    row = write(rows, folder / "test-00000.parquet", 0, TEST_ROWS, total)
    written, number = 0, 0
    while written < total:
        path = folder / f"train-{number:05}.parquet"
        row = write(rows, path, row, rows.pairs, min(BYTES_A_FILE, total - written))
        written += path.stat().st_size
        number += 1
        print(f"{path}: {written / 1e9:.2f} GB, {row - TEST_ROWS} rows in all", flush=True)


def memory(pid):
    """VmRSS, RssAnon and VmHWM of a process in MiB; None if it has ended."""
    try:
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    found = [re.search(rf"{name}:\s+(\d+) kB", status) for name in ("VmRSS", "RssAnon", "VmHWM")]
    return [int(match[1]) // 1024 for match in found] if all(found) else None


def watch(arguments):
    started = time.monotonic()
    process = subprocess.Popen(arguments.command)
    next_line, last = 0.0, None
    while process.poll() is None:
        seconds = time.monotonic() - started
        now = memory(process.pid)
        last = now or last
        if now and seconds >= next_line:
            print(f"memory: {seconds:7.0f} s  resident {now[0]:5} MiB  anonymous {now[1]:5}  most {now[2]:5}", flush=True)
            next_line += arguments.every
        if arguments.kill_after and seconds >= arguments.kill_after:
            process.kill()
        time.sleep(0.2)
    seconds = time.monotonic() - started
    print(f"memory: {seconds:7.0f} s  ended with code {process.returncode}, most resident {last[2] if last else 0} MiB")
    sys.exit(process.returncode if process.returncode >= 0 else 128 - process.returncode)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    making = commands.add_parser("make", help="write chats to parquet files")
    making.add_argument("chats")
    making.add_argument("folder")
    making.add_argument("--gigabytes", type=float, default=8.0)
    making.set_defaults(run=make)
    watching = commands.add_parser("watch", help="run a command and print its memory")
    watching.add_argument("--every", type=float, default=60.0, metavar="SECONDS")
    watching.add_argument("--kill-after", type=float, metavar="SECONDS")
    watching.add_argument("command", nargs="+")
    watching.set_defaults(run=watch)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
