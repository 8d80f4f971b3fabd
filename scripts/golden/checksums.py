"""A small parquet file with a checksum for each page, for tests/bad_input/hostile.rs.

usage: checksums.py tests/golden/checksums.parquet
"""
import sys

import pyarrow
import pyarrow.parquet

table = pyarrow.table({"text": [f"row {n}" for n in range(20)]})
pyarrow.parquet.write_table(
    table,
    sys.argv[1],
    write_page_checksum=True,
    compression="none",
    use_dictionary=False,
    write_statistics=False,
    store_schema=False,
)
