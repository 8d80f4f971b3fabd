"""The golden runs that `golden.py` makes, for `pack.sh` too. Later ones are left out if the time is
short."""

RUNS = ["dpo_mistral", "dpo_stories", "sft_window", "orpo", "kto", "sft_bfd", "sft_gemma2",
        "sft_phi3"]
REHEARSED = ["dpo_stories", "kto"]
