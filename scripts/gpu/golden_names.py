"""The golden runs that `golden.py` makes, for `pack.sh` too."""

RUNS = ["dpo_stories", "sft_window", "sft_bfd", "orpo", "kto", "sft_gemma2", "sft_phi3",
        "dpo_mistral"]
REHEARSED = ["dpo_stories", "kto"]
IN_BFLOAT16 = "dpo_mistral"
