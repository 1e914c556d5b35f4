"""How many questions each miniature benchmark has."""

SIZES = {
    "vqav2": 240,
    "gqa": 240,
    "vizwiz": 240,
    "sqa": 240,
    "textvqa": 240,
    "pope": 240,
    "mme": 240,
    "mmbench": 800,
    "mmbench_cn": 800,
    "mmvet": 120,
}
"""MMBench's 800 rows are 200 questions in four orders of their options."""

HARD_SIZES = dict.fromkeys(SIZES, 600) | {"mmbench": 2400, "mmbench_cn": 2400}
"""Of the demanding miniatures: 600 questions each, about 300 scenes."""
